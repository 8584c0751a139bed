# Evens out the packages of xsimd: afterwards there is a target `xsimd` that links. Part of the installed package.

# Later versions may name the target xsimd::xsimd only.
if(TARGET xsimd::xsimd AND NOT TARGET xsimd)
  add_library(xsimd ALIAS xsimd::xsimd)
endif()

# Debian's xsimd 8.1 links xtl, which it does not install: "cannot find -lxtl". Its headers do not need it.
get_target_property(moe_xsimd_links xsimd INTERFACE_LINK_LIBRARIES)
if("xtl" IN_LIST moe_xsimd_links AND NOT TARGET xtl)
  list(REMOVE_ITEM moe_xsimd_links xtl)
  set_property(TARGET xsimd PROPERTY INTERFACE_LINK_LIBRARIES ${moe_xsimd_links})
endif()
unset(moe_xsimd_links)

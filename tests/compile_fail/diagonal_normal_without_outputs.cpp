// SPDX-License-Identifier: MIT
#include "moe/likelihood/diagonal_normal.hpp"

moe::DiagonalNormal<0> family;

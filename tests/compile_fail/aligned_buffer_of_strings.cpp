// SPDX-License-Identifier: MIT
#include <string>

#include "moe/core/aligned.hpp"

moe::AlignedBuffer<std::string> names(3);

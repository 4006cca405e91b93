// All C++ of this crate in one translation unit: libtorch's headers, most of the compile time, are read once.
#include "packed.cpp"
#include "fused.cpp"
#include "attention.cpp"
#include "decode.cpp"

// What the C++ of this crate shares.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// One body, compiled for AVX-512, AVX2 and plain x86-64; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

namespace shim {

INLINE float bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

INLINE uint32_t bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

INLINE float load(const float* p) { return *p; }
INLINE float load(const uint16_t* p) { return bits(static_cast<uint32_t>(*p) << 16); }  // bfloat16
INLINE void store(float* p, float v) { *p = v; }
INLINE void store(uint16_t* p, float v) {
  const uint32_t u = bits(v);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  *p = static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);  // a NaN stays one
}

// e^x to about 2 units in the last place: 2^n times a polynomial for the fraction (Cephes); 0 below -87.
INLINE float exponential(float x) {
  const float kept = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float n = std::nearbyintf(kept * 1.44269504f);
  float r = kept - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float y = p * bits(static_cast<uint32_t>((static_cast<int32_t>(n) + 127) << 23));
  return x < -87.0f ? 0.0f : y;
}

constexpr int LANES = 16;

// The sum of 16 lanes, by halves: four additions deep.
INLINE float total(const float* lanes) {
  float eight[8], four[4];
  for (int i = 0; i < 8; i++) eight[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; i++) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

inline bool narrow(const at::Tensor& x) { return x.scalar_type() == at::kBFloat16; }
inline float* f32(const at::Tensor& x) { return static_cast<float*>(x.data_ptr()); }
inline uint16_t* b16(const at::Tensor& x) { return static_cast<uint16_t*>(x.data_ptr()); }

// Errors reach Rust as text: an exception must not cross into it.
template <typename F>
at::Tensor* guarded(char* message, size_t capacity, F&& f) {
  try {
    return new at::Tensor(f());
  } catch (const std::exception& e) {
    std::strncpy(message, e.what(), capacity - 1);
    message[capacity - 1] = '\0';
    return nullptr;
  }
}

}  // namespace shim

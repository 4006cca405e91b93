// Decoding on a CPU: new keys and values go into the cache, and attention of one query a row over what its row has
// stored. A row reads its own slots only, so its result depends neither on its neighbours nor on the cache's length.
// Arithmetic is float32. libtorch's attention runs a general product for the few queries that share a key head.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "shim.h"

namespace {

using at::Tensor;
using shim::b16;
using shim::f32;

constexpr int64_t WIDTH = shim::LANES;  // numbers in a vector
constexpr int64_t SLOTS = 32;           // slots at one time: their keys (or values) of all heads fit in the first cache

typedef float Vector __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH * 2)));

struct Sizes {
  int64_t heads, kv_heads, size;  // H, KVH, D
  int64_t capacity;               // slots of a row
  int64_t window;                 // a query sees so many tokens; 0: all
  float scale;
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
#include "decode_kernel.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
#include "decode_kernel.h"
}
#pragma GCC pop_options
#define IF_SUPPORTED(isa, name) if (__builtin_cpu_supports(isa)) return name::attend
#else
#define IF_SUPPORTED(isa, name)
#endif
namespace plain {
#include "decode_kernel.h"
}

template <typename T>
using Attend = void (*)(const T*, const T*, const T*, const int64_t*, T*, const Sizes&, float*, int64_t, int64_t);

// The kernel for this machine.
template <typename T>
Attend<T> attend() {
  IF_SUPPORTED("x86-64-v4", v4);
  IF_SUPPORTED("x86-64-v3", v3);
  return plain::attend;
}

}  // namespace

extern "C" {

// x [N, KVH, D], whose heads lie side by side, into rows `slots` [N] (int64) of store [M, KVH, D]. Returns the store.
Tensor* idiolect_cache_write(const Tensor* store, const Tensor* slots, const Tensor* x, char* message, size_t capacity) {
  return shim::guarded(message, capacity, [&] {
    const Tensor source = x->stride(2) == 1 && x->stride(1) == x->size(2) ? *x : x->contiguous();
    TORCH_CHECK(store->is_contiguous() && slots->is_contiguous() && slots->numel() == source.size(0));
    TORCH_CHECK(store->scalar_type() == source.scalar_type() && store->size(1) == source.size(1) &&
                store->size(2) == source.size(2));
    const int64_t bytes = source.size(1) * source.size(2) * source.element_size(), step = source.stride(0) * source.element_size();
    const int64_t* at = static_cast<const int64_t*>(slots->data_ptr());
    for (int64_t i = 0; i < source.size(0); i++) TORCH_CHECK(0 <= at[i] && at[i] < store->size(0), "slot ", at[i]);
    char* to = static_cast<char*>(store->data_ptr());
    const char* from = static_cast<const char*>(source.data_ptr());
    at::parallel_for(0, source.size(0), std::max<int64_t>(1, 65536 / bytes), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; i++) std::memcpy(to + at[i] * bytes, from + i * step, bytes);
    });
    return *store;
  });
}

// q [B, H, D]; keys and values [B, C, KVH, D], of which row b's slots up to `newest` [B] (int64) count, the last `window`
// of them unless it is 0. D is a multiple of 16. Returns [B, H * D].
Tensor* idiolect_decode(const Tensor* q, const Tensor* keys, const Tensor* values, const Tensor* newest, double scale,
                        int64_t window, char* message, size_t capacity) {
  return shim::guarded(message, capacity, [&] {
    const Tensor query = q->contiguous();
    const int64_t b = query.size(0);
    const Sizes z{query.size(1), keys->size(2), query.size(2), keys->size(1), window, static_cast<float>(scale)};
    TORCH_CHECK(z.size % WIDTH == 0 && z.heads % z.kv_heads == 0 && window >= 0);
    TORCH_CHECK(keys->is_contiguous() && values->is_contiguous() && newest->is_contiguous() && newest->numel() == b);
    TORCH_CHECK(keys->size(0) == b && keys->sizes() == values->sizes() && keys->size(3) == z.size);
    TORCH_CHECK(keys->scalar_type() == query.scalar_type() && values->scalar_type() == query.scalar_type());
    const int64_t* n = static_cast<const int64_t*>(newest->data_ptr());
    int64_t slots = 0;
    for (int64_t i = 0; i < b; i++) {
      TORCH_CHECK(0 <= n[i] && n[i] < z.capacity, "slot ", n[i], " of ", z.capacity);
      slots += n[i] + 1;
    }
    Tensor out = at::empty({b, z.heads * z.size}, query.options());
    const int64_t work = std::max<int64_t>(1, slots / b * z.heads * z.size);  // of one row
    at::parallel_for(0, b, std::max<int64_t>(1, 32768 / work), [&](int64_t from, int64_t to) {
      std::vector<float> room(2 * z.heads * z.size + z.heads * z.capacity);
      if (shim::narrow(query)) attend<uint16_t>()(b16(query), b16(*keys), b16(*values), n, b16(out), z, room.data(), from, to);
      else attend<float>()(f32(query), f32(*keys), f32(*values), n, f32(out), z, room.data(), from, to);
    });
    return out;
  });
}
}

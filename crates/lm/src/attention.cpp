// Attention for training on a CPU. Forward is libtorch's flash kernel, which keeps the scores' normalisers only. Its
// backward kernel runs far below the machine's rate in bfloat16; here the backward pass is five batched products
// and one pass that makes the probabilities anew from the normalisers (Dao et al. 2022, appendix B.2, without tiling), over
// a few sequences at a time.
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

#include "shim.h"

namespace {

using at::Tensor;
using shim::b16;
using shim::f32;
using shim::load;
using shim::store;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t TRANSIENT = 64 << 20;  // bytes of scores at one time

// One query: scores s and dp = dO V^T over the keys become probabilities and the scores' gradient.
template <typename T>
INLINE void one_query(T* s, T* dp, const T* mask, int64_t keys, int64_t seen, float scale, float lse, float delta) {
  for (int64_t j = 0; j < seen; j++) {
    const float bias = mask ? load(mask + j) : 0.0f;
    const float p = shim::exponential(load(s + j) * scale + bias - lse);
    store(s + j, p);
    store(dp + j, p * (load(dp + j) - delta) * scale);
  }
  std::memset(static_cast<void*>(s + seen), 0, (keys - seen) * sizeof(T));
  std::memset(static_cast<void*>(dp + seen), 0, (keys - seen) * sizeof(T));
}

#define QUERIES(T)                                                                                                  \
  (T * s, T * dp, const T* mask, int64_t mask_rows, const float* lse, const float* delta, int64_t heads, int64_t t, \
   bool causal, float scale, int64_t from, int64_t to)
// Queries (b, h, i) in order.
#define BODY                                                                                                   \
  for (int64_t n = from; n < to; n++) {                                                                        \
    const int64_t i = n % t, b = n / (heads * t);                                                              \
    one_query(s + n * t, dp + n * t, mask ? mask + ((mask_rows > 1 ? b * t : 0) + i) * t : nullptr, t,         \
              causal ? i + 1 : t, scale, lse[n], delta[n]);                                                    \
  }
CLONES void queries_f32 QUERIES(float) { BODY }
CLONES void queries_bf16 QUERIES(uint16_t) { BODY }

struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& mask, bool causal, double scale) {
    auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, mask, scale);
    ctx->save_for_backward({q, k, v, out, lse, mask.value_or(Tensor())});
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const bool causal = ctx->saved_data["causal"].toBool();
    const double scale = ctx->saved_data["scale"].toDouble();
    const Tensor q = saved[0].contiguous(), k = saved[1].contiguous(), v = saved[2].contiguous();
    const Tensor lse = saved[4].to(at::kFloat).contiguous(), mask = saved[5];
    const Tensor g = gradients[0].contiguous();
    const Tensor delta = (g.to(at::kFloat) * saved[3].to(at::kFloat)).sum(-1).contiguous();  // [B, H, T]
    const int64_t b = q.size(0), h = q.size(1), t = q.size(2), d = q.size(3), kv = k.size(1), queries = h / kv * t;
    Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    const int64_t together = std::max<int64_t>(1, TRANSIENT / (h * t * t * q.element_size()));
    for (int64_t from = 0; from < b; from += together) {
      const int64_t n = std::min(together, b - from);
      // Heads that share keys are one longer list of queries.
      auto part = [&](const Tensor& x, int64_t rows) { return x.narrow(0, from, n).reshape({n * kv, rows, d}); };
      const Tensor qs = part(q, queries), ks = part(k, t), vs = part(v, t), gs = part(g, queries);
      Tensor p = at::bmm(qs, ks.transpose(1, 2)), ds = at::bmm(gs, vs.transpose(1, 2));  // [n KVH, G T, T]
      const Tensor bias = mask.defined() ? (mask.size(0) > 1 ? mask.narrow(0, from, n) : mask).contiguous() : mask;
      const float *l = f32(lse) + from * h * t, *e = f32(delta) + from * h * t;
      const float s = static_cast<float>(scale);
      at::parallel_for(0, n * h * t, std::max<int64_t>(1, 16384 / t), [&](int64_t a, int64_t z) {
        const int64_t rows = bias.defined() ? bias.size(0) : 0;
        if (shim::narrow(p)) queries_bf16(b16(p), b16(ds), rows ? b16(bias) : nullptr, rows, l, e, h, t, causal, s, a, z);
        else queries_f32(f32(p), f32(ds), rows ? f32(bias) : nullptr, rows, l, e, h, t, causal, s, a, z);
      });
      dv.narrow(0, from, n).view({n * kv, t, d}).copy_(at::bmm(p.transpose(1, 2), gs));
      dk.narrow(0, from, n).view({n * kv, t, d}).copy_(at::bmm(ds.transpose(1, 2), qs));
      dq.narrow(0, from, n).view({n * kv, queries, d}).copy_(at::bmm(ds, ks));
    }
    return {dq, dk, dv, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

// q [B, H, T, D], k and v [B, KVH, T, D]; mask [1 or B, 1, T, T] is added to the scores, or null.
extern "C" Tensor* idiolect_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* mask, bool causal,
                                      double scale, char* message, size_t capacity) {
  return shim::guarded(message, capacity, [&] {
    return Attention::apply(*q, *k, *v, mask ? std::optional<Tensor>(*mask) : std::nullopt, causal, scale);
  });
}

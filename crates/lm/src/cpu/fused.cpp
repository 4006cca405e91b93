// Three element-wise steps of a block as one pass over memory each, with their derivatives: RMS norm, rotary positions
// and the gated MLP's product; and over a vocabulary, softmax and sampling. libtorch runs them as five to ten kernels with float32 copies in between, which on a CPU
// costs more than the matrix products. Arithmetic is float32; a row's result does not depend on other rows.
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "shim.h"

namespace {

using at::Tensor;
using shim::b16;
using shim::exponential;
using shim::f32;
using shim::guarded;
using shim::LANES;
using shim::load;
using shim::narrow;
using shim::store;
using shim::total;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename T>
INLINE float largest(const T* row, int64_t size) {
  float tops[LANES];
  for (int i = 0; i < LANES; i++) tops[i] = load(row);
  int64_t j = 0;
  for (; j + LANES <= size; j += LANES)
    for (int i = 0; i < LANES; i++) tops[i] = load(row + j + i) > tops[i] ? load(row + j + i) : tops[i];
  float top = tops[0];
  for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
  for (; j < size; j++) top = load(row + j) > top ? load(row + j) : top;
  return top;
}

// ---- RMS norm: y = x / sqrt(mean(x^2) + epsilon) * weight

template <typename T>
INLINE void norm_rows(const T* x, const float* w, T* y, float* inverse, int64_t stride, int64_t size, float epsilon,
                      int64_t from, int64_t to) {
  for (int64_t n = from; n < to; n++) {
    const T* in = x + n * stride;
    T* out = y + n * size;
    float lanes[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES)
      for (int i = 0; i < LANES; i++) lanes[i] += load(in + j + i) * load(in + j + i);
    float sum = total(lanes);
    for (; j < size; j++) sum += load(in + j) * load(in + j);
    const float r = 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon);
    inverse[n] = r;
    for (int64_t k = 0; k < size; k++) store(out + k, load(in + k) * r * w[k]);
  }
}

template <typename T>
INLINE void norm_back(const T* dy, const T* x, const float* w, const float* inverse, T* dx, int64_t stride, int64_t size,
                      int64_t from, int64_t to) {
  for (int64_t n = from; n < to; n++) {
    const T *in = x + n * stride, *g = dy + n * size;
    T* out = dx + n * size;
    float lanes[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES)
      for (int i = 0; i < LANES; i++) lanes[i] += load(g + j + i) * w[j + i] * load(in + j + i);
    float sum = total(lanes);
    for (; j < size; j++) sum += load(g + j) * w[j] * load(in + j);
    const float r = inverse[n], c = r * r * r * sum / static_cast<float>(size);
    for (int64_t k = 0; k < size; k++) store(out + k, load(g + k) * w[k] * r - load(in + k) * c);
  }
}

// ---- rotary positions, halves: (a, b) -> (a cos - b sin, b cos + a sin); `sign` -1 turns back

template <typename T>
INLINE void turn_rows(const T* x, const T* cosine, const T* sine, T* y, int64_t stride, int64_t heads, int64_t size,
                      float sign, int64_t from, int64_t to) {
  const int64_t half = size / 2;
  for (int64_t n = from; n < to; n++) {
    const T *c = cosine + n * size, *s = sine + n * size;
    for (int64_t h = 0; h < heads; h++) {
      const T *a = x + n * stride + h * size, *b = a + half;
      T *p = y + (n * heads + h) * size, *q = p + half;
      for (int64_t i = 0; i < half; i++) {
        const float u = load(a + i), v = load(b + i), co = load(c + i), si = load(s + i) * sign;
        store(p + i, u * co - v * si);
        store(q + i, v * co + u * si);
      }
    }
  }
}

// ---- silu(gate) * up, gate and up side by side in a row

template <typename T>
INLINE void gate_rows(const T* x, T* y, int64_t size, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; n++) {
    const T *gate = x + n * 2 * size, *up = gate + size;
    for (int64_t i = 0; i < size; i++) {
      const float g = load(gate + i);
      store(y + n * size + i, g / (1.0f + exponential(-g)) * load(up + i));
    }
  }
}

template <typename T>
INLINE void gate_back(const T* dy, const T* x, T* dx, int64_t size, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; n++) {
    const T *gate = x + n * 2 * size, *up = gate + size;
    T *dgate = dx + n * 2 * size, *dup = dgate + size;
    for (int64_t i = 0; i < size; i++) {
      const float g = load(gate + i), d = load(dy + n * size + i);
      const float s = 1.0f / (1.0f + exponential(-g));
      store(dgate + i, d * load(up + i) * s * (1.0f + g * (1.0f - s)));
      store(dup + i, d * g * s);
    }
  }
}

// ---- log softmax at one target a row; if probabilities are wanted the row becomes them, less `hit` at the target. The subtraction is in float32: near
// probability 1 a bfloat16 holds nothing of what is left to 1.

template <typename T>
INLINE void soft_rows(T* x, const int64_t* target, float* logp, int64_t size, bool wanted, float hit, int64_t from,
                      int64_t to) {
  for (int64_t n = from; n < to; n++) {
    T* row = x + n * size;
    const float top = largest(row, size);
    float lanes[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES)
      for (int i = 0; i < LANES; i++) lanes[i] += exponential(load(row + j + i) - top);
    float sum = total(lanes);
    for (; j < size; j++) sum += exponential(load(row + j) - top);
    logp[n] = load(row + target[n]) - top - std::log(sum);
    if (wanted) {
      const float share = 1.0f / sum, left = exponential(load(row + target[n]) - top) * share - hit;
      for (int64_t k = 0; k < size; k++) store(row + k, exponential(load(row + k) - top) * share);
      store(row + target[n], left);
    }
  }
}

// ---- a draw by inverse CDF: the first index whose cumulative weight exp(beta (x - max)) exceeds u times the total

constexpr int64_t BLOCK = 512;

template <typename T>
INLINE void draw_rows(const T* x, const float* u, float beta, int64_t* out, int64_t size, int64_t from, int64_t to) {
  const int64_t blocks = (size + BLOCK - 1) / BLOCK;
  std::vector<double> sums(blocks);
  for (int64_t n = from; n < to; n++) {
    const T* row = x + n * size;
    const float top = largest(row, size);
    double all = 0;
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t end = std::min(size, (b + 1) * BLOCK);
      float lanes[LANES] = {0};
      int64_t j = b * BLOCK;
      for (; j + LANES <= end; j += LANES)
        for (int i = 0; i < LANES; i++) lanes[i] += exponential((load(row + j + i) - top) * beta);
      float sum = total(lanes);
      for (; j < end; j++) sum += exponential((load(row + j) - top) * beta);
      sums[b] = sum;
      all += sum;
    }
    const double wanted = static_cast<double>(u[n]) * all;
    double passed = 0;
    int64_t b = 0;
    while (b + 1 < blocks && passed + sums[b] <= wanted) passed += sums[b++];
    int64_t last = 0;  // of a weight above zero, in case rounding leaves the block without a hit
    for (int64_t j = b * BLOCK; j < std::min(size, (b + 1) * BLOCK); j++) {
      const float weight = exponential((load(row + j) - top) * beta);
      if (weight > 0) last = j;
      passed += weight;
      if (passed > wanted) break;
    }
    out[n] = last;
  }
}

// Each body for each type, cloned for each instruction set.
#define DRAW(T) (const T* x, const float* u, float beta, int64_t* o, int64_t v, int64_t a, int64_t b)
CLONES void draw_f32 DRAW(float) { draw_rows(x, u, beta, o, v, a, b); }
CLONES void draw_bf16 DRAW(uint16_t) { draw_rows(x, u, beta, o, v, a, b); }
#define SOFT(T) (T * x, const int64_t* t, float* l, int64_t v, bool w, float h, int64_t a, int64_t b)
CLONES void soft_f32 SOFT(float) { soft_rows(x, t, l, v, w, h, a, b); }
CLONES void soft_bf16 SOFT(uint16_t) { soft_rows(x, t, l, v, w, h, a, b); }
#define NORM(T) (const T* x, const float* w, T* y, float* v, int64_t st, int64_t e, float eps, int64_t a, int64_t b)
CLONES void norm_f32 NORM(float) { norm_rows(x, w, y, v, st, e, eps, a, b); }
CLONES void norm_bf16 NORM(uint16_t) { norm_rows(x, w, y, v, st, e, eps, a, b); }
#define NORM_BACK(T) \
  (const T* g, const T* x, const float* w, const float* v, T* d, int64_t st, int64_t e, int64_t a, int64_t b)
CLONES void norm_back_f32 NORM_BACK(float) { norm_back(g, x, w, v, d, st, e, a, b); }
CLONES void norm_back_bf16 NORM_BACK(uint16_t) { norm_back(g, x, w, v, d, st, e, a, b); }
#define TURN(T) \
  (const T* x, const T* c, const T* s, T* y, int64_t st, int64_t h, int64_t d, float sign, int64_t a, int64_t b)
CLONES void turn_f32 TURN(float) { turn_rows(x, c, s, y, st, h, d, sign, a, b); }
CLONES void turn_bf16 TURN(uint16_t) { turn_rows(x, c, s, y, st, h, d, sign, a, b); }
#define GATE(T) (const T* x, T* y, int64_t m, int64_t a, int64_t b)
CLONES void gate_f32 GATE(float) { gate_rows(x, y, m, a, b); }
CLONES void gate_bf16 GATE(uint16_t) { gate_rows(x, y, m, a, b); }
#define GATE_BACK(T) (const T* g, const T* x, T* d, int64_t m, int64_t a, int64_t b)
CLONES void gate_back_f32 GATE_BACK(float) { gate_back(g, x, d, m, a, b); }
CLONES void gate_back_bf16 GATE_BACK(uint16_t) { gate_back(g, x, d, m, a, b); }

// Rows in parallel, at least 16k numbers a thread.
template <typename F>
void rows(int64_t count, int64_t width, F&& f) {
  at::parallel_for(0, count, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)), f);
}

Tensor turned(const Tensor& x, const Tensor& cosine, const Tensor& sine, float sign) {
  const int64_t n = x.size(0), h = x.size(1), d = x.size(2);
  Tensor y = at::empty({n, h, d}, x.options());
  rows(n, h * d, [&](int64_t a, int64_t b) {
    if (narrow(x)) turn_bf16(b16(x), b16(cosine), b16(sine), b16(y), x.stride(0), h, d, sign, a, b);
    else turn_f32(f32(x), f32(cosine), f32(sine), f32(y), x.stride(0), h, d, sign, a, b);
  });
  return y;
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double epsilon) {
    const int64_t e = x.size(-1), n = x.numel() / e;
    Tensor y = at::empty(x.sizes(), x.options());
    Tensor inverse = at::empty({n}, x.options().dtype(at::kFloat));
    rows(n, e, [&](int64_t a, int64_t b) {
      const float eps = static_cast<float>(epsilon);
      if (narrow(x)) norm_bf16(b16(x), f32(weight), b16(y), f32(inverse), e, e, eps, a, b);
      else norm_f32(f32(x), f32(weight), f32(y), f32(inverse), e, e, eps, a, b);
    });
    ctx->save_for_backward({x, weight, inverse});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &inverse = saved[2];
    const Tensor g = gradients[0].contiguous();
    const int64_t e = x.size(-1);
    Tensor dx = at::empty(x.sizes(), x.options());
    rows(x.numel() / e, e, [&](int64_t a, int64_t b) {
      if (narrow(x)) norm_back_bf16(b16(g), b16(x), f32(weight), f32(inverse), b16(dx), e, e, a, b);
      else norm_back_f32(f32(g), f32(x), f32(weight), f32(inverse), f32(dx), e, e, a, b);
    });
    return {dx, Tensor(), Tensor()};
  }
};

struct Turn : torch::autograd::Function<Turn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cosine, const Tensor& sine) {
    ctx->save_for_backward({cosine, sine});
    return turned(x, cosine, sine, 1.0f);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    return {turned(gradients[0].contiguous(), saved[0], saved[1], -1.0f), Tensor(), Tensor()};
  }
};

struct Gate : torch::autograd::Function<Gate> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    const int64_t n = x.size(0), m = x.size(1) / 2;
    Tensor y = at::empty({n, m}, x.options());
    rows(n, m, [&](int64_t a, int64_t b) {
      if (narrow(x)) gate_bf16(b16(x), b16(y), m, a, b);
      else gate_f32(f32(x), f32(y), m, a, b);
    });
    ctx->save_for_backward({x});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Tensor x = ctx->get_saved_variables()[0], g = gradients[0].contiguous();
    const int64_t n = x.size(0), m = x.size(1) / 2;
    Tensor dx = at::empty(x.sizes(), x.options());
    rows(n, m, [&](int64_t a, int64_t b) {
      if (narrow(x)) gate_back_bf16(b16(g), b16(x), b16(dx), m, a, b);
      else gate_back_f32(f32(g), f32(x), f32(dx), m, a, b);
    });
    return {dx};
  }
};

}  // namespace

extern "C" {

// x [.., E], weight [E] in float32.
Tensor* idiolect_rms_norm(const Tensor* x, const Tensor* weight, double epsilon, char* message, size_t capacity) {
  return guarded(message, capacity, [&] { return RmsNorm::apply(x->contiguous(), *weight, epsilon); });
}

// x [N, H, D] whose heads lie side by side; cosine and sine [N, 1, D] in x's type.
Tensor* idiolect_rotate(const Tensor* x, const Tensor* cosine, const Tensor* sine, char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    const bool dense = x->stride(2) == 1 && x->stride(1) == x->size(2);
    return Turn::apply(dense ? *x : x->contiguous(), cosine->contiguous(), sine->contiguous());
  });
}

// Log-probabilities [N] in float32 of targets [N] (int64) under logits x [N, V]; if `wanted`, x becomes its probabilities, less `hit` at the target.
Tensor* idiolect_log_softmax(const Tensor* x, const Tensor* targets, bool wanted, float hit, char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    TORCH_CHECK(x->is_contiguous() && targets->is_contiguous() && targets->scalar_type() == at::kLong);
    const int64_t n = x->size(0), v = x->size(1);
    Tensor logp = at::empty({n}, x->options().dtype(at::kFloat));
    const int64_t* t = static_cast<const int64_t*>(targets->data_ptr());
    for (int64_t i = 0; i < n; i++) TORCH_CHECK(0 <= t[i] && t[i] < v, "token id ", t[i], " of ", v);
    rows(n, v, [&](int64_t a, int64_t b) {
      if (narrow(*x)) soft_bf16(b16(*x), t, f32(logp), v, wanted, hit, a, b);
      else soft_f32(f32(*x), t, f32(logp), v, wanted, hit, a, b);
    });
    return logp;
  });
}

// A token for each row of logits [N, V] at the uniforms [N] and inverse temperature `beta`: [N], int64.
Tensor* idiolect_draw(const Tensor* logits, const Tensor* uniforms, double beta, char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    const Tensor x = logits->contiguous();
    TORCH_CHECK(uniforms->is_contiguous() && uniforms->scalar_type() == at::kFloat && uniforms->numel() == x.size(0));
    Tensor out = at::empty({x.size(0)}, x.options().dtype(at::kLong));
    int64_t* o = static_cast<int64_t*>(out.data_ptr());
    rows(x.size(0), x.size(1), [&](int64_t a, int64_t b) {
      const float inverse = static_cast<float>(beta);
      if (narrow(x)) draw_bf16(b16(x), f32(*uniforms), inverse, o, x.size(1), a, b);
      else draw_f32(f32(x), f32(*uniforms), inverse, o, x.size(1), a, b);
    });
    return out;
  });
}

// x [N, 2M]: silu of the first half times the second.
Tensor* idiolect_gate(const Tensor* x, char* message, size_t capacity) {
  return guarded(message, capacity, [&] { return Gate::apply(x->contiguous()); });
}
}

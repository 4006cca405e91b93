// Products with frozen weights that oneDNN has laid out once. `mkldnn::_linear_pointwise` is in libtorch and has no
// derivative; here it gets one: the same operator on the transposed weight. Frozen weights need no gradient.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/from_blob.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string_view>

#include "shim.h"

namespace {

using at::Tensor;
using shim::guarded;

// y [.., out] = x [.., in] W^T + bias, W packed by `reorder`.
Tensor product(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view,
                                           c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>)>();
  return op.call(x, packed, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

Tensor reorder(const Tensor& weight, int64_t rows) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_reorder_linear_weight", "")
                             .typed<Tensor(const Tensor&, std::optional<c10::SymInt>)>();
  return op.call(weight, c10::SymInt(rows));
}

struct PackedLinear : torch::autograd::Function<PackedLinear> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& forward,
                        const Tensor& backward, const std::optional<Tensor>& bias) {
    ctx->saved_data["backward"] = backward;
    return product(x, forward, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const Tensor packed = ctx->saved_data["backward"].toTensor();
    return {product(gradients[0].contiguous(), packed, std::nullopt), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// A tensor over somebody's bytes; `release(owner)` is called when the last reference to it goes.
Tensor* idiolect_borrow(const void* data, const int64_t* sizes, size_t axes, int kind, const void* owner,
                        void (*release)(const void*), char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    return at::from_blob(
        const_cast<void*>(data), at::IntArrayRef(sizes, axes), [owner, release](void*) { release(owner); },
        at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)));
  });
}

// The weight [out, in] laid out for products with about `rows` rows.
Tensor* idiolect_pack(const Tensor* weight, int64_t rows, char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    at::NoGradGuard no_grad;
    return reorder(weight->contiguous(), rows);
  });
}

// x [N, in] times a packed weight, plus the bias unless null; `backward` is the packed transpose, null without gradients.
Tensor* idiolect_packed_linear(const Tensor* x, const Tensor* forward, const Tensor* backward, const Tensor* bias,
                               char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    const std::optional<Tensor> b = bias ? std::optional<Tensor>(*bias) : std::nullopt;
    const Tensor input = x->contiguous();
    return backward ? PackedLinear::apply(input, *forward, *backward, b) : product(input, *forward, b);
  });
}
}

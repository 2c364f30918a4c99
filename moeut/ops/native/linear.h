// A dense layer and its gradients: y = x Wᵀ + b, with a ReLU behind it where wanted.
#pragma once

#include <optional>

#include "few.h"
#include "tensors.h"

namespace moeut {

// What a ReLU lets through of a gradient (N, O), given its output: where that is not at most 0. The
// rows are summed on the way to `sum` (O), unless it is null.
inline Tensor through_relu(const Tensor& gradient, const Tensor& output, float* sum) {
  Tensor passed = at::empty_like(gradient);
  const float* __restrict g = read(gradient);
  const float* __restrict y = read(output);
  float* __restrict target = write(passed);
  float* __restrict total = sum;
  const int64_t count = gradient.size(0), width = gradient.size(1);
  for (int64_t i = 0; i < count; ++i, g += width, y += width, target += width) {
    for (int64_t j = 0; j < width; ++j) target[j] = y[j] <= 0.0f ? 0.0f : g[j];
    if (total != nullptr)
      for (int64_t j = 0; j < width; ++j) total[j] += target[j];
  }
  return passed;
}

// Add the rows (N, O) of a gradient, in their order, to `sum` (O).
inline void sum_rows(const Tensor& gradient, float* sum) {
  const float* source = read(gradient);
  const int64_t count = gradient.size(0), width = gradient.size(1);
  for (int64_t i = 0; i < count; ++i) add_row(sum, source + i * width, width);
}

// x (..., I), weight (O, I), bias (O) -> (..., O)
inline Tensor linear_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      bool relu) {
  TORCH_CHECK(weight.dim() == 2 && x.dim() > 0 && x.size(-1) == weight.size(1), "x ", x.sizes(),
              " and weight ", weight.sizes(), " cannot be multiplied: expected (..., I) and (O, I)");
  TORCH_CHECK(!bias.has_value() || bias->sizes() == weight.sizes().slice(0, 1), "bias ",
              bias->sizes(), ": expected ", weight.sizes().slice(0, 1));
  const Tensor rows = as_rows(x), w = weight.contiguous();
  const int64_t count = rows.size(0), in = rows.size(1), out = w.size(0);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = out;
  Tensor y = at::empty(shape, x.options());
  Finish finish;
  finish.relu = relu;
  Tensor added;
  if (bias.has_value()) {
    added = bias->contiguous();
    finish.bias = read(added);
  }
  const float *a = read(rows), *b = read(w);
  float* c = write(y);
  if (count < kFewRows) {
    const int64_t grain = std::max<int64_t>(16, (1 << 18) / std::max<int64_t>(1, count * in));
    at::parallel_for(0, (out + 3) / 4, grain / 4 + 1, [&](int64_t first, int64_t last) {
      multiply_few(count, in, a, b, c, out, 4 * first, std::min(4 * last, out), finish);
    });
  } else {
    multiply_parallel(count, out, in, {a, in, 1}, {b, 1, in}, c, out, finish);
  }
  return y;
}

struct Needs {
  bool x, weight, bias;
};

// The gradients of x, weight and bias, undefined where not needed, given that of the output (..., O).
// `output` is there if a ReLU has made it.
inline variable_list linear_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight,
                              const Tensor& output, Needs needs) {
  const Tensor rows = as_rows(x), w = weight.contiguous();
  Tensor grad = as_rows(gradient);
  Tensor d_x, d_weight, d_bias;
  if (needs.bias) d_bias = at::zeros({grad.size(1)}, grad.options());
  float* to_bias = needs.bias ? write(d_bias) : nullptr;
  if (output.defined())
    grad = through_relu(grad, as_rows(output), to_bias);
  else if (needs.bias)
    sum_rows(grad, to_bias);
  const int64_t count = rows.size(0), in = rows.size(1), out = w.size(0);
  const float* g = read(grad);
  if (needs.x) {
    d_x = at::empty(x.sizes(), x.options());
    multiply_parallel(count, in, out, {g, out, 1}, {read(w), in, 1}, write(d_x), in);
  }
  if (needs.weight) {
    d_weight = at::empty({out, in}, w.options());
    multiply_parallel(out, in, count, {g, 1, out}, {read(rows), in, 1}, write(d_weight), in);
  }
  return {d_x, d_weight, d_bias};
}

class Linear : public torch::autograd::Function<Linear> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, bool relu) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor y = linear_forward(x, weight, bias, relu);
    context->save_for_backward({x, weight, relu ? y : Tensor()});
    context->saved_data["bias"] = bias.has_value() && bias->requires_grad();
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Needs needs = {context->needs_input_grad(0), context->needs_input_grad(1),
                         context->saved_data["bias"].toBool()};
    variable_list found =
        at::GradMode::is_enabled()
            ? differentiable(gradients[0], saved, needs)
            : linear_backward(gradients[0], saved[0], saved[1], saved[2], needs);
    found.emplace_back();  // relu has none
    return found;
  }

 private:
  // The same gradients by operations that are differentiable again.
  static variable_list differentiable(Tensor gradient, const variable_list& saved, Needs needs) {
    if (saved[2].defined()) gradient = gradient * (saved[2] > 0);
    const Tensor grad = gradient.reshape({-1, gradient.size(-1)});
    const Tensor rows = saved[0].reshape({-1, saved[0].size(-1)});
    return {needs.x ? at::matmul(gradient, saved[1]) : Tensor(),
            needs.weight ? at::mm(grad.t(), rows) : Tensor(),
            needs.bias ? grad.sum(0) : Tensor()};
  }
};

}  // namespace moeut

// The dense feed-forward, y = relu(x Uᵀ + a) Wᵀ + b, and its gradients, a block of rows at a time.
//
// N rows, D width, F hidden, O out; U (F, D), W (O, F). A block's hidden activations, and in the
// gradients what comes back to them, stay in cache from one product to the next, and the ReLU's
// derivative is taken on the way out of a product. Blocks are as many rows as sums over rows are cut into, so
// that every number is that of two layers (linear.h), to the bit.
#pragma once

#include <optional>

#include "linear.h"

namespace moeut {

// A block has 2 MiB of hidden activations, or 512 rows if they are more: of fewer rows, packing the
// weights for each block takes longer than memory does.
constexpr int64_t kHiddenFloats = 1 << 19, kMinBlockDepths = 4;

inline int64_t rows_of_block(int64_t hidden) {
  const int64_t fitting = kHiddenFloats / (kDepth * std::max<int64_t>(1, hidden));
  return kDepth * std::max(kMinBlockDepths, fitting);
}

struct Mlp {
  Tensor rows, up, down;  // x as (N, D), U, W
  int64_t count, width, hidden, out;

  Mlp(const Tensor& x, const Tensor& up_, const Tensor& down_)
      : rows(as_rows(x)), up(up_.contiguous()), down(down_.contiguous()), count(rows.size(0)),
        width(up_.size(1)), hidden(up_.size(0)), out(down_.size(0)) {}

  template <typename Work>
  void for_blocks(const Work& work) const {
    const int64_t block = rows_of_block(hidden);
    for (int64_t first = 0; first < count; first += block)
      work(first, std::min(block, count - first));
  }
};

// x (..., D) -> (..., O), and relu(x Uᵀ + a) (N, F) if it is to be kept.
inline std::tuple<Tensor, Tensor> mlp_forward(const Tensor& x, const Tensor& up,
                                              const std::optional<Tensor>& up_bias,
                                              const Tensor& down,
                                              const std::optional<Tensor>& down_bias, bool keep) {
  TORCH_CHECK(up.dim() == 2 && down.dim() == 2 && x.dim() > 0 && x.size(-1) == up.size(1) &&
                  up.size(0) == down.size(1),
              "x ", x.sizes(), ", up ", up.sizes(), " and down ", down.sizes(),
              " cannot be multiplied: expected (..., D), (F, D) and (O, F)");
  TORCH_CHECK((!up_bias.has_value() || up_bias->sizes() == up.sizes().slice(0, 1)) &&
                  (!down_bias.has_value() || down_bias->sizes() == down.sizes().slice(0, 1)),
              "a bias does not have the size of its layer's output");
  const Mlp m(x, up, down);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = m.out;
  Tensor y = at::empty(shape, x.options());
  const int64_t held = keep ? m.count : std::min(m.count, rows_of_block(m.hidden));
  Tensor kept = at::empty({held, m.hidden}, x.options());
  Tensor added_up, added_down;
  Finish first, second;
  first.relu = true;
  if (up_bias.has_value()) first.bias = read(added_up = up_bias->contiguous());
  if (down_bias.has_value()) second.bias = read(added_down = down_bias->contiguous());
  const float *source = read(m.rows), *u = read(m.up), *w = read(m.down);
  float *target = write(y), *hidden = write(kept);
  m.for_blocks([&](int64_t start, int64_t count) {
    float* h = keep ? hidden + start * m.hidden : hidden;
    multiply_parallel(count, m.hidden, m.width, {source + start * m.width, m.width, 1},
                      {u, 1, m.width}, h, m.hidden, first);
    multiply_parallel(count, m.out, m.hidden, {h, m.hidden, 1}, {w, 1, m.hidden},
                      target + start * m.out, m.out, second);
  });
  return {y, kept};
}

// Which gradients are wanted, in the order of the operation's arguments.
using MlpNeeds = std::array<bool, 5>;

// The gradients of x, U, a, W and b, undefined where not needed, given that of y (..., O).
inline variable_list mlp_backward(const Tensor& gradient, const Tensor& x, const Tensor& up,
                                  const Tensor& down, const Tensor& kept, MlpNeeds needs) {
  const Mlp m(x, up, down);
  const Tensor grad = as_rows(gradient);
  Tensor d_x, d_up, d_up_bias, d_down, d_down_bias;
  if (needs[0]) d_x = at::empty(x.sizes(), x.options());
  if (needs[1]) d_up = at::empty({m.hidden, m.width}, x.options());
  if (needs[2]) d_up_bias = at::zeros({m.hidden}, x.options());
  if (needs[3]) d_down = at::empty({m.out, m.hidden}, x.options());
  if (needs[4]) d_down_bias = at::zeros({m.out}, x.options());
  const float *g = read(grad), *source = read(m.rows), *u = read(m.up), *w = read(m.down);
  const float* hidden = read(kept);
  float *to_x = needs[0] ? write(d_x) : nullptr, *to_up = needs[1] ? write(d_up) : nullptr,
        *to_down = needs[3] ? write(d_down) : nullptr,
        *to_bias = needs[2] ? write(d_up_bias) : nullptr;
  if (needs[4]) sum_rows(grad, write(d_down_bias));
  Tensor back = at::empty({std::min(m.count, rows_of_block(m.hidden)), m.hidden}, x.options());
  float* z = write(back);
  Finish sum, passed;
  m.for_blocks([&](int64_t start, int64_t count) {
    const float *h = hidden + start * m.hidden, *of_y = g + start * m.out,
                *of_x = source + start * m.width;
    sum.accumulate = start > 0;
    if (to_down != nullptr)
      multiply_parallel(m.out, m.hidden, count, {of_y, 1, m.out}, {h, m.hidden, 1}, to_down,
                        m.hidden, sum);
    if (!needs[0] && !needs[1] && !needs[2]) return;
    passed.positive = h;
    multiply_parallel(count, m.hidden, m.out, {of_y, m.out, 1}, {w, m.hidden, 1}, z, m.hidden,
                      passed);
    if (to_bias != nullptr)
      for (int64_t i = 0; i < count; ++i) add_row(to_bias, z + i * m.hidden, m.hidden);
    if (to_x != nullptr)
      multiply_parallel(count, m.width, m.hidden, {z, m.hidden, 1}, {u, m.width, 1},
                        to_x + start * m.width, m.width);
    if (to_up != nullptr)
      multiply_parallel(m.hidden, m.width, count, {z, 1, m.hidden}, {of_x, m.width, 1}, to_up,
                        m.width, sum);
  });
  return {d_x, d_up, d_up_bias, d_down, d_down_bias};
}

class MlpFunction : public torch::autograd::Function<MlpFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& up,
                        const std::optional<Tensor>& up_bias, const Tensor& down,
                        const std::optional<Tensor>& down_bias) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, kept] = mlp_forward(x, up, up_bias, down, down_bias, true);
    context->save_for_backward({x, up, down, up_bias.value_or(Tensor()), kept});
    context->saved_data["up_bias"] = up_bias.has_value() && up_bias->requires_grad();
    context->saved_data["down_bias"] = down_bias.has_value() && down_bias->requires_grad();
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    // Of arguments that may be left out, autograd counts those that are there.
    const bool has_up_bias = saved[3].defined();
    const MlpNeeds needs = {context->needs_input_grad(0), context->needs_input_grad(1),
                            context->saved_data["up_bias"].toBool(),
                            context->needs_input_grad(has_up_bias ? 3 : 2),
                            context->saved_data["down_bias"].toBool()};
    return at::GradMode::is_enabled()
               ? differentiable(gradients[0], saved, needs)
               : mlp_backward(gradients[0], saved[0], saved[1], saved[2], saved[4], needs);
  }

 private:
  // The same gradients by operations that are differentiable again.
  static variable_list differentiable(const Tensor& gradient, const variable_list& saved,
                                      MlpNeeds needs) {
    const Tensor grad = gradient.reshape({-1, gradient.size(-1)});
    const Tensor rows = saved[0].reshape({-1, saved[0].size(-1)});
    Tensor sum = at::mm(rows, saved[1].t());
    if (saved[3].defined()) sum = sum + saved[3];
    const Tensor back = at::mm(grad, saved[2]) * (sum > 0);
    return {needs[0] ? at::mm(back, saved[1]).view(saved[0].sizes()) : Tensor(),
            needs[1] ? at::mm(back.t(), rows) : Tensor(),
            needs[2] ? back.sum(0) : Tensor(),
            needs[3] ? at::mm(grad.t(), at::relu(sum)) : Tensor(),
            needs[4] ? grad.sum(0) : Tensor()};
  }
};

inline Tensor mlp_once(const Tensor& x, const Tensor& up, const std::optional<Tensor>& up_bias,
                       const Tensor& down, const std::optional<Tensor>& down_bias) {
  return std::get<0>(mlp_forward(x, up, up_bias, down, down_bias, false));
}

inline Tensor mlp(const Tensor& x, const Tensor& up, const std::optional<Tensor>& up_bias,
                  const Tensor& down, const std::optional<Tensor>& down_bias) {
  if (!at::GradMode::is_enabled()) return mlp_once(x, up, up_bias, down, down_bias);
  return MlpFunction::apply(x, up, up_bias, down, down_bias);
}

}  // namespace moeut

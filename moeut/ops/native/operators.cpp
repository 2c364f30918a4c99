// The operations as PyTorch sees them: moeut_native::linear, attention, expert_linear, …
#include <torch/library.h>

#include "attention.h"
#include "dropout.h"
#include "experts.h"
#include "linear.h"
#include "long_backward.h"
#include "loss.h"
#include "mlp.h"
#include "router.h"
#include "token.h"
#include "token_pass.h"

namespace moeut {
namespace {

constexpr auto kOnce =
    "native experts and attention can be differentiated once; MOEUT_NATIVE=0 does without them";

std::optional<Tensor> optional(const Tensor& x) {
  return x.defined() ? std::optional<Tensor>(x) : std::nullopt;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& x) {
  return x.has_value() ? std::optional<Tensor>(x->contiguous()) : std::nullopt;
}

class ExpertLinear : public torch::autograd::Function<ExpertLinear> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& order, const Tensor& offsets,
                        const std::optional<Tensor>& gate, int64_t slots_in, int64_t slots_out) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor rows = x.contiguous(), weights = weight.contiguous();
    const auto gates = contiguous(gate);
    Tensor y = expert_linear_forward(rows, weights, order, offsets, gates, slots_in, slots_out);
    context->save_for_backward({rows, weights, order, offsets, gates.value_or(Tensor())});
    context->saved_data["slots"] = std::vector<int64_t>{slots_in, slots_out};
    context->saved_data["gate"] = gate.has_value() && gate->requires_grad();
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), kOnce);
    const auto saved = context->get_saved_variables();
    const auto slots = context->saved_data["slots"].toIntVector();
    const auto found = expert_linear_backward(
        gradients[0].contiguous(), saved[0], saved[1], saved[2], saved[3], optional(saved[4]),
        slots[0], slots[1],
        {context->needs_input_grad(0), context->needs_input_grad(1),
         context->saved_data["gate"].toBool()});
    return {found[0], found[1], {}, {}, found[2], {}, {}};
  }
};

class ExpertMlp : public torch::autograd::Function<ExpertMlp> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& up,
                        const Tensor& down, const Tensor& order, const Tensor& offsets,
                        const std::optional<Tensor>& gate) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor rows = x.contiguous(), w_up = up.contiguous(), w_down = down.contiguous();
    const auto gates = contiguous(gate);
    const bool on_gate = gate.has_value() && gate->requires_grad();
    const bool keep = x.requires_grad() || up.requires_grad() || down.requires_grad() || on_gate;
    auto [y, kept] = expert_mlp_forward(rows, w_up, w_down, order, offsets, gates, keep);
    context->save_for_backward(
        {rows, w_up, w_down, order, offsets, gates.value_or(Tensor()), kept});
    context->saved_data["gate"] = on_gate;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), kOnce);
    const auto saved = context->get_saved_variables();
    const auto found = expert_mlp_backward(
        gradients[0].contiguous(), saved[0], saved[1], saved[2], saved[3], saved[4],
        optional(saved[5]), saved[6],
        {context->needs_input_grad(0), context->needs_input_grad(1), context->needs_input_grad(2),
         context->saved_data["gate"].toBool()});
    return {found[0], found[1], found[2], {}, {}, found[3]};
  }
};

Dropping dropping_of(double probability) {
  return {float(probability), probability == 0.0 ? 0 : uint64_t(draw_seed())};
}

// Keep for backward how attention was computed, besides its tensors.
void keep(AutogradContext* context, const Dropping& dropping, double scale, bool causal) {
  context->saved_data["dropout"] = double(dropping.probability);
  context->saved_data["seed"] = static_cast<int64_t>(dropping.seed);
  context->saved_data["scale"] = scale;
  context->saved_data["causal"] = causal;
}

Dropping kept_dropping(AutogradContext* context) {
  return {float(context->saved_data["dropout"].toDouble()),
          uint64_t(context->saved_data["seed"].toInt())};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& query, const Tensor& key,
                        const Tensor& value, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& content,
                        const std::optional<Tensor>& position, const std::optional<Tensor>& table,
                        double dropout, double scale, bool causal) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor q = with_channels_last(query), k = with_channels_last(key),
                 v = with_channels_last(value);
    const Relative relative = relative_of(content, position, table);
    const Dropping dropping = dropping_of(dropout);
    auto [out, kept] =
        attention_forward(q, k, v, contiguous(bias), relative, dropping, scale, causal);
    context->save_for_backward({q, k, v, relative.content, relative.position, relative.table, kept});
    keep(context, dropping, scale, causal);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), kOnce);
    const auto saved = context->get_saved_variables();
    const auto found = attention_backward(
        with_channels_last(gradients[0]), saved[0], saved[1], saved[2],
        {saved[3], saved[4], saved[5]},
        kept_dropping(context), saved[6], context->saved_data["scale"].toDouble(),
        context->saved_data["causal"].toBool());
    return {found[0], found[1], found[2], {}, found[3], found[4], found[5], {}, {}, {}};
  }

  static Relative relative_of(const std::optional<Tensor>& content,
                              const std::optional<Tensor>& position,
                              const std::optional<Tensor>& table) {
    if (!table.has_value()) return {};
    return {content->contiguous(), position->contiguous(), table->contiguous()};
  }
};

Tensor attention_once(const Tensor& query, const Tensor& key, const Tensor& value,
                      const std::optional<Tensor>& bias, const std::optional<Tensor>& content,
                      const std::optional<Tensor>& position, const std::optional<Tensor>& table,
                      double dropout, double scale, bool causal) {
  const Tensor q = with_channels_last(query), k = with_channels_last(key),
               v = with_channels_last(value);
  const Relative relative = Attention::relative_of(content, position, table);
  const Dropping dropping = dropping_of(dropout);
  if (is_token(q, dropping))
    return token_attention(q, k, v, contiguous(bias), relative, scale, causal);
  return std::get<0>(
      attention_forward(q, k, v, contiguous(bias), relative, dropping, scale, causal));
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const std::optional<Tensor>& bias, const std::optional<Tensor>& content,
                 const std::optional<Tensor>& position, const std::optional<Tensor>& table,
                 double dropout, double scale, bool causal) {
  if (!at::GradMode::is_enabled())
    return attention_once(query, key, value, bias, content, position, table, dropout, scale,
                          causal);
  return Attention::apply(query, key, value, bias, content, position, table, dropout, scale,
                          causal);
}

// Attention in blocks, which keeps no weights.
class LongAttention : public torch::autograd::Function<LongAttention> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& query, const Tensor& key,
                        const Tensor& value, const std::optional<Tensor>& bias, double dropout,
                        double scale, bool causal) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor q = with_channels_last(query), k = with_channels_last(key),
                 v = with_channels_last(value);
    const auto added = contiguous(bias);
    const Dropping dropping = dropping_of(dropout);
    auto [out, logarithms] = long_attention_forward(q, k, v, added, dropping, scale, causal);
    context->save_for_backward({q, k, v, added.value_or(Tensor()), out, logarithms});
    keep(context, dropping, scale, causal);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), kOnce);
    const auto saved = context->get_saved_variables();
    const auto found = long_attention_backward(
        with_channels_last(gradients[0]), saved[0], saved[1], saved[2], optional(saved[3]),
        saved[4], saved[5], kept_dropping(context), context->saved_data["scale"].toDouble(),
        context->saved_data["causal"].toBool());
    return {found[0], found[1], found[2], {}, {}, {}, {}};
  }
};

Tensor long_attention_once(const Tensor& query, const Tensor& key, const Tensor& value,
                           const std::optional<Tensor>& bias, double dropout, double scale,
                           bool causal) {
  return std::get<0>(long_attention_forward(
      with_channels_last(query), with_channels_last(key), with_channels_last(value),
      contiguous(bias), dropping_of(dropout), scale, causal));
}

Tensor long_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                      const std::optional<Tensor>& bias, double dropout, double scale,
                      bool causal) {
  if (!at::GradMode::is_enabled())
    return long_attention_once(query, key, value, bias, dropout, scale, causal);
  return LongAttention::apply(query, key, value, bias, dropout, scale, causal);
}

Tensor expert_linear_once(const Tensor& x, const Tensor& weight, const Tensor& order,
                          const Tensor& offsets, const std::optional<Tensor>& gate,
                          int64_t slots_in, int64_t slots_out) {
  return expert_linear_forward(x.contiguous(), weight.contiguous(), order, offsets,
                               contiguous(gate), slots_in, slots_out);
}

Tensor expert_mlp_once(const Tensor& x, const Tensor& up, const Tensor& down, const Tensor& order,
                       const Tensor& offsets, const std::optional<Tensor>& gate) {
  return std::get<0>(expert_mlp_forward(x.contiguous(), up.contiguous(), down.contiguous(), order,
                                        offsets, contiguous(gate), false));
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool relu) {
  if (!at::GradMode::is_enabled()) return linear_forward(x, weight, bias, relu);
  return Linear::apply(x, weight, bias, relu);
}

Tensor expert_linear(const Tensor& x, const Tensor& weight, const Tensor& order,
                     const Tensor& offsets, const std::optional<Tensor>& gate, int64_t slots_in,
                     int64_t slots_out) {
  if (!at::GradMode::is_enabled())
    return expert_linear_once(x, weight, order, offsets, gate, slots_in, slots_out);
  return ExpertLinear::apply(x, weight, order, offsets, gate, slots_in, slots_out);
}

Tensor expert_mlp(const Tensor& x, const Tensor& up, const Tensor& down, const Tensor& order,
                  const Tensor& offsets, const std::optional<Tensor>& gate) {
  if (!at::GradMode::is_enabled()) return expert_mlp_once(x, up, down, order, offsets, gate);
  return ExpertMlp::apply(x, up, down, order, offsets, gate);
}

}  // namespace
}  // namespace moeut

TORCH_LIBRARY(moeut_native, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor");
  m.def(
      "mlp(Tensor x, Tensor up, Tensor? up_bias, Tensor down, Tensor? down_bias) -> Tensor");
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? content, "
      "Tensor? position, Tensor? table, float dropout, float scale, bool causal) -> Tensor");
  m.def(
      "long_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, float dropout, "
      "float scale, bool causal) -> Tensor");
  m.def("dropout(Tensor x, float probability) -> Tensor");
  m.def("cross_entropy(Tensor logits, Tensor targets, int ignored) -> Tensor");
  m.def(
      "expert_linear(Tensor x, Tensor weight, Tensor order, Tensor offsets, Tensor? gate, "
      "int slots_in, int slots_out) -> Tensor");
  m.def(
      "expert_mlp(Tensor x, Tensor up, Tensor down, Tensor order, Tensor offsets, Tensor? gate) "
      "-> Tensor");
  m.def(
      "route(Tensor logits, Tensor? dropped, Tensor? real, Tensor? share, int top_k, int routers, "
      "bool balance) -> Tensor[]");
  m.def("sort_slots(Tensor index, int experts) -> (Tensor, Tensor, Tensor)");
  m.class_<moeut::TokenPass>("TokenPass")
      .def(torch::init<at::Tensor, bool>())
      .def("dense_attention", &moeut::TokenPass::dense_attention)
      .def("switch_head", &moeut::TokenPass::switch_head)
      .def("dense_feed_forward", &moeut::TokenPass::dense_feed_forward)
      .def("expert_feed_forward", &moeut::TokenPass::expert_feed_forward)
      .def("head", &moeut::TokenPass::head)
      .def("run", &moeut::TokenPass::run);
}
TORCH_LIBRARY_IMPL(moeut_native, CPU, m) {
  m.impl("linear", moeut::linear_forward);
  m.impl("mlp", moeut::mlp_once);
  m.impl("attention", moeut::attention_once);
  m.impl("long_attention", moeut::long_attention_once);
  m.impl("dropout", moeut::dropout_once);
  m.impl("cross_entropy", moeut::cross_entropy);
  m.impl("expert_linear", moeut::expert_linear_once);
  m.impl("expert_mlp", moeut::expert_mlp_once);
  m.impl("route", moeut::route_once);
  m.impl("sort_slots", moeut::sort_slots);
}
TORCH_LIBRARY_IMPL(moeut_native, Autograd, m) {
  m.impl("linear", moeut::linear);
  m.impl("mlp", moeut::mlp);
  m.impl("attention", moeut::attention);
  m.impl("long_attention", moeut::long_attention);
  m.impl("dropout", moeut::dropout);
  m.impl("cross_entropy", moeut::cross_entropy);
  m.impl("expert_linear", moeut::expert_linear);
  m.impl("expert_mlp", moeut::expert_mlp);
  m.impl("route", moeut::route);
}

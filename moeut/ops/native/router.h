// From the logits of routers to what the products of experts need, and back: the top_k experts of
// each token by raw logits, their sigmoids as gates, all slots sorted by expert, and the mean
// probabilities of a balance loss.
//
// B rows, T tokens, R routers that decide at once, H heads each, E experts, k = top_k. Experts of a
// router are numbered through its heads: expert e of head h is row h E + e of its weights.
//
// Softmax, sigmoid and means are PyTorch's, or sum in its order (router_softmax.h), so that every
// number is that of the plain path, to the bit. So is the choice where equal logits leave it open
// (largest.h).
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "experts.h"
#include "largest.h"
#include "router_softmax.h"

namespace moeut {

struct RouterSizes {
  int64_t batch, length, routers, heads, experts, top_k;

  RouterSizes(at::IntArrayRef logits, int64_t routers_, int64_t top_k_)
      : batch(logits[0]), length(logits[1]), routers(routers_), heads(logits[2] / routers_),
        experts(logits[3]), top_k(top_k_) {}

  // Call work(first of k slots, first of E logits, head) for the tokens and heads of one router.
  template <typename Work>
  void for_heads(int64_t router, int64_t first_token, int64_t last_token, const Work& work) const {
    for (int64_t t = first_token; t < last_token; ++t)
      for (int64_t h = 0; h < heads; ++h)
        work((t * heads + h) * top_k, ((t * routers + router) * heads + h) * experts, h);
  }

  int64_t tokens() const { return batch * length; }
};

// Choose for one router: rows of its weights, and the logits of those that were chosen, (S,) each.
inline void choose(const RouterSizes& sizes, int64_t router, const float* logits,
                   const bool* dropped, const bool* real, int64_t* rows, float* chosen) {
  at::parallel_for(0, sizes.tokens(), 64, [&](int64_t from, int64_t to) {
    LargestOfRows largest(sizes.experts, sizes.top_k);
    const float* of_logits[kLanes];
    const bool* of_dropped[kLanes];
    int64_t slots[kLanes], heads[kLanes], count = 0;
    const auto decide = [&] {
      const int64_t* best = largest.of(of_logits, dropped == nullptr ? nullptr : of_dropped, count);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = slots[i]; c < slots[i] + sizes.top_k; ++c, ++best) {
          const bool is_real = real == nullptr || real[c / (sizes.heads * sizes.top_k)];
          rows[c] = is_real && *best >= 0 ? heads[i] * sizes.experts + *best : -1;
          chosen[c] = *best >= 0 ? of_logits[i][*best] : -std::numeric_limits<float>::infinity();
        }
      count = 0;
    };
    sizes.for_heads(router, from, to, [&](int64_t slot, int64_t first, int64_t head) {
      of_logits[count] = logits + first, slots[count] = slot, heads[count] = head;
      if (dropped != nullptr) of_dropped[count] = dropped + first;
      if (++count == kLanes) decide();
    });
    if (count > 0) decide();
  });
}

inline Tensor softmax_of(const Tensor& logits, const RouterSizes& sizes) {
  if (!is_narrow(sizes.experts)) return at::_softmax(logits, -1, false);
  Tensor p = at::empty_like(logits);
  const int64_t rows = sizes.routers * sizes.heads;
  const float* source = read(logits);
  float* target = write(p);
  at::parallel_for(0, sizes.tokens(), 256, [&](int64_t from, int64_t to) {
    const int64_t first = from * rows * sizes.experts;
    softmax_of_narrow(source + first, target + first, (to - from) * rows, sizes.experts);
  });
  return p;
}

// The gradient of logits, given that of their softmax: (B, T, R H, E), or (B, 1, R H, E) for all
// tokens of a row.
inline Tensor through_softmax(const Tensor& gradient, const Tensor& p, const RouterSizes& sizes) {
  if (!is_narrow(sizes.experts))
    return at::_softmax_backward_data(gradient.expand(p.sizes()).contiguous(), p, -1, at::kFloat);
  Tensor d_logits = at::empty_like(p);
  const int64_t rows = sizes.routers * sizes.heads, width = rows * sizes.experts;
  const int64_t shared = gradient.size(1) == 1 ? sizes.length : 1;  // tokens with one gradient
  const float *source = read(gradient), *of_p = read(p);
  float* target = write(d_logits);
  at::parallel_for(0, sizes.tokens(), 256, [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t)
      through_softmax_of_narrow(source + t / shared * width, of_p + t * width, target + t * width,
                                rows, sizes.experts);
  });
  return d_logits;
}

// What `route` makes of logits (B, T, R H, E); R tensors of each kind.
struct Routed {
  std::vector<Tensor> gates;           // (B, T, H, k)
  std::vector<Tensor> probabilities;   // (B, H, E), or (rows, H, E) of packed tokens, for a balance loss
  std::vector<Tensor> rows;            // (S,) row of the weights of each slot, -1: none
  std::vector<Tensor> order, counts, offsets;  // as sort_slots makes them
  Tensor softmax;                      // (B, T, R H, E), for a balance loss

  variable_list outputs() const {
    variable_list all;
    for (const auto* part : {&gates, &probabilities, &rows, &order, &counts, &offsets})
      all.insert(all.end(), part->begin(), part->end());
    return all;
  }
};

// `dropped` (B, T, R H, E) cannot be chosen, tokens that are not `real` (B, T) get no expert.
// Probabilities are means over tokens, those of padding left out by their `share` (B, 1, T); where
// tokens of many rows are packed, (1, rows, T), there is a mean for each row.
inline Routed route_forward(const Tensor& logits, const std::optional<Tensor>& dropped,
                            const std::optional<Tensor>& real, const std::optional<Tensor>& share,
                            int64_t top_k, int64_t routers, bool balance) {
  TORCH_CHECK(logits.dim() == 4 && logits.size(2) % routers == 0 && top_k <= logits.size(3),
              "logits ", logits.sizes(), ", ", routers, " routers and top_k ", top_k,
              ": expected (B, T, heads of all routers, experts)");
  const RouterSizes sizes(logits.sizes(), routers, top_k);
  Routed routed;
  const auto flags = [](const std::optional<Tensor>& x) {
    return x.has_value() ? x->const_data_ptr<bool>() : nullptr;
  };
  for (int64_t r = 0; r < routers; ++r) {
    Tensor rows = at::empty({sizes.tokens() * sizes.heads * top_k}, logits.options().dtype(at::kLong));
    Tensor gates = at::empty({sizes.batch, sizes.length, sizes.heads, top_k}, logits.options());
    choose(sizes, r, read(logits), flags(dropped), flags(real), rows.mutable_data_ptr<int64_t>(),
           write(gates));
    gates.sigmoid_();
    auto [order, counts, offsets] = sort_slots(rows, sizes.heads * sizes.experts);
    routed.gates.push_back(gates), routed.rows.push_back(rows), routed.order.push_back(order);
    routed.counts.push_back(counts), routed.offsets.push_back(offsets);
  }
  if (balance) {
    routed.softmax = softmax_of(logits, sizes);
    const Tensor mean = share.has_value() ? at::matmul(*share, routed.softmax.flatten(2))
                                                .view({-1, logits.size(2), sizes.experts})
                                          : at::mean(routed.softmax, {1});
    for (int64_t r = 0; r < routers; ++r)
      routed.probabilities.push_back(
          routers == 1 ? mean : mean.narrow(1, r * sizes.heads, sizes.heads).contiguous());
  }
  return routed;
}

// The gradient of logits (B, T, R H, E), given those of gates and, with a balance loss, of
// probabilities; each may be undefined.
inline Tensor route_backward(const RouterSizes& sizes, const std::vector<Tensor>& d_gates,
                             const std::vector<Tensor>& d_probabilities,
                             const std::vector<Tensor>& rows, const std::vector<Tensor>& gates,
                             const Tensor& softmax, const Tensor& share) {
  const std::vector<int64_t> shape = {sizes.batch, sizes.length, sizes.routers * sizes.heads,
                                      sizes.experts};
  Tensor d_logits;
  const auto is_there = [](const Tensor& x) { return x.defined(); };
  if (std::any_of(d_probabilities.begin(), d_probabilities.end(), is_there)) {
    const int64_t means = share.defined() ? share.size(0) * share.size(1) : sizes.batch;
    std::vector<Tensor> parts = d_probabilities;
    for (Tensor& part : parts)
      if (!part.defined())
        part = at::zeros({means, sizes.heads, sizes.experts}, softmax.options());
    const Tensor d_mean = parts.size() == 1 ? parts[0] : at::cat(parts, 1);
    const Tensor spread =
        share.defined()
            ? at::matmul(share.transpose(1, 2), d_mean.reshape({share.size(0), share.size(1), -1}))
                  .view(shape)
            : at::div(d_mean, at::Scalar(sizes.length)).unsqueeze(1);
    d_logits = through_softmax(spread.contiguous(), softmax, sizes);
  } else {
    d_logits = at::zeros(shape, gates[0].options());
  }
  float* target = write(d_logits);
  for (int64_t r = 0; r < sizes.routers; ++r) {
    if (!d_gates[r].defined()) continue;
    const Tensor through = at::sigmoid_backward(d_gates[r].contiguous(), gates[r]);
    const float* source = read(through);
    const int64_t* row = rows[r].const_data_ptr<int64_t>();
    sizes.for_heads(r, 0, sizes.tokens(), [&](int64_t slot, int64_t first, int64_t head) {
      float* of_experts = target + first - head * sizes.experts;
      for (int64_t c = slot; c < slot + sizes.top_k; ++c)
        if (row[c] >= 0) of_experts[row[c]] += source[c];
    });
  }
  return d_logits;
}

class Route : public torch::autograd::Function<Route> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& logits,
                               const std::optional<Tensor>& dropped,
                               const std::optional<Tensor>& real,
                               const std::optional<Tensor>& share, int64_t top_k, int64_t routers,
                               bool balance) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor rows = logits.contiguous();
    Routed routed = route_forward(rows, dropped, real, share, top_k, routers, balance);
    variable_list saved = {routed.softmax, share.value_or(Tensor())};
    saved.insert(saved.end(), routed.rows.begin(), routed.rows.end());
    saved.insert(saved.end(), routed.gates.begin(), routed.gates.end());
    context->save_for_backward(saved);
    context->saved_data["shape"] = logits.sizes().vec();
    context->saved_data["routers"] = routers;
    context->saved_data["balance"] = balance;
    variable_list outputs = routed.outputs();
    const int64_t differentiable = (balance ? 2 : 1) * routers;
    context->mark_non_differentiable({outputs.begin() + differentiable, outputs.end()});
    context->set_materialize_grads(false);
    return outputs;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "the native router can be differentiated once; MOEUT_NATIVE=0 does without it");
    const auto saved = context->get_saved_variables();
    const auto shape = context->saved_data["shape"].toIntVector();
    const int64_t routers = context->saved_data["routers"].toInt();
    const std::vector<Tensor> rows(saved.begin() + 2, saved.begin() + 2 + routers);
    const std::vector<Tensor> gates(saved.begin() + 2 + routers, saved.end());
    RouterSizes sizes(shape, routers, gates[0].size(3));
    const std::vector<Tensor> d_gates(gradients.begin(), gradients.begin() + routers);
    std::vector<Tensor> d_probabilities;
    if (context->saved_data["balance"].toBool())
      d_probabilities.assign(gradients.begin() + routers, gradients.begin() + 2 * routers);
    return {route_backward(sizes, d_gates, d_probabilities, rows, gates, saved[0], saved[1]),
            {}, {}, {}, {}, {}, {}};
  }
};

inline variable_list route_once(const Tensor& logits, const std::optional<Tensor>& dropped,
                                const std::optional<Tensor>& real,
                                const std::optional<Tensor>& share, int64_t top_k, int64_t routers,
                                bool balance) {
  return route_forward(logits.contiguous(), dropped, real, share, top_k, routers, balance)
      .outputs();
}

inline variable_list route(const Tensor& logits, const std::optional<Tensor>& dropped,
                           const std::optional<Tensor>& real, const std::optional<Tensor>& share,
                           int64_t top_k, int64_t routers, bool balance) {
  if (!at::GradMode::is_enabled())
    return route_once(logits, dropped, real, share, top_k, routers, balance);
  return Route::apply(logits, dropped, real, share, top_k, routers, balance);
}

}  // namespace moeut

// Sublayers whose weights are experts that each token chooses, for one token of each of a few rows:
// σ-MoE and SwitchHead. What they cost is to read the chosen experts, each once, in the order of
// memory.
//
// E experts, K of them chosen; a slot is one choice, [row, head, choice], and S is their number.
#pragma once

#include <cmath>
#include <cstring>

#include "largest.h"
#include "pass.h"

namespace moeut {

// The choices of a few rows, sorted by expert.
class Choices {
 public:
  // Choose the `top_k` largest of the `experts` logits of each of `heads` heads from column `first`
  // of rows of logits; heads have experts of their own.
  void choose(const Rows& logits, int64_t first, int64_t heads, int64_t experts, int64_t top_k) {
    slots_per_row_ = heads * top_k;
    const int64_t slots = logits.count * slots_per_row_;
    expert_.resize(slots), gates_.resize(slots);
    Largest largest(experts, top_k);
    for (int64_t i = 0; i < logits.count; ++i)
      for (int64_t h = 0; h < heads; ++h) {
        const float* of_head = logits[i] + first + h * experts;
        const int64_t* best = largest.of(of_head);
        const int64_t slot = i * slots_per_row_ + h * top_k;
        for (int64_t k = 0; k < top_k; ++k) {
          expert_[slot + k] = h * experts + best[k];
          gates_[slot + k] = 1.0f / (1.0f + std::exp(-of_head[best[k]]));
        }
      }
    sort(heads * experts);
  }

  int64_t slots() const { return int64_t(order_.size()); }
  // Of sorted slot r: the slot, the row and the gate.
  int64_t slot(int64_t r) const { return order_[r]; }
  int64_t row(int64_t r) const { return order_[r] / slots_per_row_; }
  float gate(int64_t r) const { return gates_[order_[r]]; }

  // Call work(expert, first sorted slot, slots, next expert or -1) for all experts that are chosen;
  // threads share them.
  template <typename Work>
  void for_experts(int64_t cost, const Work& work) const {
    const int64_t count = int64_t(chosen_.size());
    at::parallel_for(0, count, std::max<int64_t>(1, (1 << 19) / std::max<int64_t>(1, cost)),
                     [&](int64_t from, int64_t to) {
                       for (int64_t i = from; i < to; ++i) {
                         const int64_t e = chosen_[i];
                         work(e, first_[e], first_[e + 1] - first_[e],
                              i + 1 < to ? chosen_[i + 1] : -1);
                       }
                     });
  }

 private:
  void sort(int64_t experts) {
    first_.assign(experts + 1, 0);
    for (const int64_t e : expert_) ++first_[e + 1];
    chosen_.clear();
    for (int64_t e = 0; e < experts; ++e) {
      if (first_[e + 1] > 0) chosen_.push_back(e);
      first_[e + 1] += first_[e];
    }
    next_.assign(first_.begin(), first_.end());
    order_.resize(expert_.size());
    for (size_t s = 0; s < expert_.size(); ++s) order_[next_[expert_[s]]++] = int64_t(s);
  }

  int64_t slots_per_row_ = 1;
  std::vector<float> gates_;
  std::vector<int64_t> expert_, order_, first_, next_, chosen_;
};

// The weights (E, I, O) of experts, read where they lie or from a copy in bfloat16.
struct Experts {
  Tensor floats;
  std::shared_ptr<Half> halves;  // or null
  int64_t count, inputs, outputs;

  Experts(Tensor weight)
      : floats(std::move(weight)), count(floats.size(0)), inputs(floats.size(1)),
        outputs(floats.size(2)) {
    use_huge_pages(read(floats), floats.numel());
  }

  bool fits() const { return fits_half(read(floats), floats.numel()); }
  void halve() { halves = halved(read(floats), floats.numel()); }

  // Where an expert begins; null for -1.
  template <typename Number>
  const Number* of(int64_t expert) const {
    const Number* start;
    if constexpr (std::is_same_v<Number, float>)
      start = read(floats);
    else
      start = halves.get();
    return expert < 0 ? nullptr : start + expert * inputs * outputs;
  }

  // C = A W of one of them, for sorted slots, which have rows of their own in A and in C.
  template <typename Number>
  void multiply(const Left& left, int64_t expert, float* c, int64_t c_row,
                const Number* after) const {
    std::fill(c, c + left.rows * c_row, 0.0f);
    add_rows(left, of<Number>(expert), outputs, outputs, c, c_row, after);
  }
};

// x += Σ over the chosen experts e of g_e relu(n U_e) W_e; U (E, D, F), W (E, F, D)
class ExpertFeedForward : public FeedForward {
 public:
  ExpertFeedForward(std::optional<LayerNorm> norm, bool is_peri, Packed router, Tensor up,
                    Tensor down, int64_t top_k)
      : FeedForward(std::move(norm), is_peri), router_(std::move(router)), up_(std::move(up)),
        down_(std::move(down)), top_k_(top_k) {
    if (up_.fits() && down_.fits()) up_.halve(), down_.halve();
  }

  void run(Passing& pass) override {
    norm(pass);
    logits_.shape(pass.x.count, router_.outputs());
    router_.set(left_of(routed(pass)), logits_[0], logits_.stride);
    choices_.choose(logits_, 0, 1, up_.count, top_k_);
    const int64_t slots = choices_.slots();
    inputs_.shape(slots, pass.x.width), hidden_.shape(slots, up_.outputs);
    outputs_.shape(slots, pass.x.width);
    if (up_.halves != nullptr)
      multiply<Half>(plain(pass));
    else
      multiply<float>(plain(pass));
    for (int64_t r = 0; r < slots; ++r)
      add_row(pass.x[choices_.row(r)], outputs_[r], outputs_.width, choices_.gate(r));
  }

 private:
  template <typename Number>
  void multiply(const Rows& source) {
    choices_.for_experts(2 * up_.inputs * up_.outputs, [&](int64_t e, int64_t r, int64_t count,
                                                           int64_t next) {
      for (int64_t i = r; i < r + count; ++i)
        std::memcpy(inputs_[i], source[choices_.row(i)], inputs_.stride * sizeof(float));
      up_.multiply({inputs_[r], inputs_.stride, count, inputs_.width}, e, hidden_[r],
                   hidden_.stride, down_.of<Number>(e));
      relu_rows(hidden_[r], hidden_.stride, count);
      static thread_local Nonzero nonzero;
      down_.multiply(nonzero.of({hidden_[r], hidden_.stride, count, hidden_.width}), e,
                     outputs_[r], outputs_.stride, up_.of<Number>(next));
    });
  }

  Packed router_;
  Experts up_, down_;
  int64_t top_k_;
  Choices choices_;
  Rows logits_, inputs_, hidden_, outputs_;
};

// Attention whose values and outputs are made by experts of each head: V (H E, D, d) and
// O (H E, d, D).
class SwitchHead : public AttentionLayer {
 public:
  SwitchHead(std::optional<LayerNorm> norm, bool is_peri, HeadSizes sizes, Packed query_key,
             Packed routers, Tensor value, Tensor output, int64_t top_k)
      : AttentionLayer(std::move(norm), is_peri, std::move(sizes)),
        query_key_(std::move(query_key)), routers_(std::move(routers)), value_(std::move(value)),
        output_(std::move(output)), top_k_(top_k) {
    for (Experts* one : {&value_, &output_})
      if (one->fits()) one->halve();
  }

 protected:
  void project(Passing& pass) override {
    query_key_.set(left_of(routed(pass)), pass.heads[0], pass.heads.stride);
    logits_.shape(pass.x.count, routers_.outputs());
    routers_.set(left_of(routed(pass)), logits_[0], logits_.stride);
    const int64_t heads = sizes_.heads, experts = value_.count / heads;
    of_values_.choose(logits_, 0, heads, experts, top_k_);
    of_outputs_.choose(logits_, heads * experts, heads, experts, top_k_);
    const Rows& source = plain(pass);
    multiply(of_values_, value_, [&](int64_t r) { return source[of_values_.row(r)]; });
    const int64_t first = 2 * sizes_.queries();
    for (int64_t i = 0; i < pass.x.count; ++i)
      std::fill(pass.heads[i] + first, pass.heads[i] + first + sizes_.keys(), 0.0f);
    for (int64_t r = 0; r < of_values_.slots(); ++r)
      add_row(pass.heads[of_values_.row(r)] + first + head_of(of_values_, r) * sizes_.size,
              results_[r], sizes_.size, of_values_.gate(r));
  }

  void output(Passing& pass) override {
    multiply(of_outputs_, output_, [&](int64_t r) {
      return pass.attended[of_outputs_.row(r)] + head_of(of_outputs_, r) * sizes_.size;
    });
    for (int64_t r = 0; r < of_outputs_.slots(); ++r)
      add_row(pass.x[of_outputs_.row(r)], results_[r], output_.outputs, of_outputs_.gate(r));
  }

 private:
  int64_t head_of(const Choices& choices, int64_t r) const {
    return choices.slot(r) / top_k_ % sizes_.heads;
  }

  // The products of what `source` says of each sorted slot by its expert's weight.
  template <typename Source>
  void multiply(const Choices& choices, const Experts& weight, const Source& source) {
    if (weight.halves != nullptr)
      multiply_as<Half>(choices, weight, source);
    else
      multiply_as<float>(choices, weight, source);
  }

  template <typename Number, typename Source>
  void multiply_as(const Choices& choices, const Experts& weight, const Source& source) {
    const int64_t in = weight.inputs, out = weight.outputs;
    Rows& inputs = in == sizes_.size ? heads_ : inputs_;
    inputs.shape(choices.slots(), in);
    results_.shape(choices.slots(), out);
    choices.for_experts(in * out, [&](int64_t e, int64_t r, int64_t count, int64_t next) {
      for (int64_t i = r; i < r + count; ++i)
        std::memcpy(inputs[i], source(i), in * sizeof(float));
      weight.multiply({inputs[r], inputs.stride, count, in}, e, results_[r], results_.stride,
                      weight.of<Number>(next));
    });
  }

  Packed query_key_, routers_;
  Experts value_, output_;
  int64_t top_k_;
  Choices of_values_, of_outputs_;
  Rows logits_, inputs_, heads_, results_;
};

}  // namespace moeut

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

// A product by one expert of sorted slots, which have rows of their own in A and in C.
inline void expert_product(const Left& left, const Tensor& weight, int64_t expert, float* c,
                           int64_t c_row, const float* after) {
  const int64_t in = weight.size(1), out = weight.size(2);
  std::fill(c, c + left.rows * c_row, 0.0f);
  add_rows(left, read(weight) + expert * in * out, out, out, c, c_row, after);
}

inline const float* start_of(const Tensor& weight, int64_t expert) {
  return expert < 0 ? nullptr : read(weight) + expert * weight.size(1) * weight.size(2);
}

// x += Σ over the chosen experts e of g_e relu(n U_e) W_e; U (E, D, F), W (E, F, D)
class ExpertFeedForward : public FeedForward {
 public:
  ExpertFeedForward(std::optional<LayerNorm> norm, bool is_peri, Packed router, Tensor up,
                    Tensor down, int64_t top_k)
      : FeedForward(std::move(norm), is_peri), router_(std::move(router)), up_(std::move(up)),
        down_(std::move(down)), top_k_(top_k) {
    for (const Tensor& one : {up_, down_}) use_huge_pages(read(one), one.numel());
  }

  void run(Passing& pass) override {
    norm(pass);
    logits_.shape(pass.x.count, router_.outputs());
    router_.set(left_of(routed(pass)), logits_[0], logits_.stride);
    choices_.choose(logits_, 0, 1, up_.size(0), top_k_);
    const int64_t slots = choices_.slots();
    inputs_.shape(slots, pass.x.width), hidden_.shape(slots, up_.size(2));
    outputs_.shape(slots, pass.x.width);
    const Rows& source = plain(pass);
    choices_.for_experts(2 * up_.size(1) * up_.size(2), [&](int64_t e, int64_t r, int64_t count,
                                                             int64_t next) {
      for (int64_t i = r; i < r + count; ++i)
        std::memcpy(inputs_[i], source[choices_.row(i)], inputs_.stride * sizeof(float));
      expert_product({inputs_[r], inputs_.stride, count, inputs_.width}, up_, e, hidden_[r],
                     hidden_.stride, start_of(down_, e));
      relu_rows(hidden_[r], hidden_.stride, count);
      static thread_local Nonzero nonzero;
      expert_product(nonzero.of({hidden_[r], hidden_.stride, count, hidden_.width}), down_, e,
                     outputs_[r], outputs_.stride, start_of(up_, next));
    });
    for (int64_t r = 0; r < slots; ++r)
      add_row(pass.x[choices_.row(r)], outputs_[r], outputs_.width, choices_.gate(r));
  }

 private:
  Packed router_;
  Tensor up_, down_;
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
    for (const Tensor& one : {value_, output_}) use_huge_pages(read(one), one.numel());
  }

 protected:
  void project(Passing& pass) override {
    query_key_.set(left_of(routed(pass)), pass.heads[0], pass.heads.stride);
    logits_.shape(pass.x.count, routers_.outputs());
    routers_.set(left_of(routed(pass)), logits_[0], logits_.stride);
    const int64_t heads = sizes_.heads, experts = value_.size(0) / heads;
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
      add_row(pass.x[of_outputs_.row(r)], results_[r], output_.size(2), of_outputs_.gate(r));
  }

 private:
  int64_t head_of(const Choices& choices, int64_t r) const {
    return choices.slot(r) / top_k_ % sizes_.heads;
  }

  // The products of what `source` says of each sorted slot by its expert's weight.
  template <typename Source>
  void multiply(const Choices& choices, const Tensor& weight, const Source& source) {
    const int64_t in = weight.size(1), out = weight.size(2);
    Rows& inputs = in == sizes_.size ? heads_ : inputs_;
    inputs.shape(choices.slots(), in);
    results_.shape(choices.slots(), out);
    choices.for_experts(in * out, [&](int64_t e, int64_t r, int64_t count, int64_t next) {
      for (int64_t i = r; i < r + count; ++i)
        std::memcpy(inputs[i], source(i), in * sizeof(float));
      expert_product({inputs[r], inputs.stride, count, in}, weight, e, results_[r],
                     results_.stride, start_of(weight, next));
    });
  }

  Packed query_key_, routers_;
  Tensor value_, output_;
  int64_t top_k_;
  Choices of_values_, of_outputs_;
  Rows logits_, inputs_, heads_, results_;
};

}  // namespace moeut

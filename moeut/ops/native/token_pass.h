// The pass of one token of each of a few rows as PyTorch sees it: built layer by layer from the
// weights of a model, and run.
#pragma once

#include <torch/custom_class.h>

#include <memory>

#include "chosen.h"

namespace moeut {

// All layers of a stack with what comes behind it.
class TokenPass : public torch::CustomClassHolder {
 public:
  using Optional = std::optional<Tensor>;

  // Frequencies (R) of the rotated pairs of channels; none: positions turn nothing.
  TokenPass(Tensor frequencies, bool neighbours)
      : frequencies_(frequencies.contiguous()), neighbours_(neighbours) {}

  void dense_attention(const Tensor& norm_weight, const Tensor& norm_bias, double epsilon,
                       bool is_peri, int64_t heads, int64_t key_heads,
                       const std::vector<Tensor>& weights, const std::vector<Optional>& biases) {
    attentions_.push_back(std::make_unique<DenseAttention>(
        LayerNorm{norm_weight, norm_bias, float(epsilon)}, is_peri,
        sizes(heads, key_heads, weights.at(0)),
        Packed({weights[0], weights[1]}, {biases[0], biases[1]}),
        Packed({weights[2]}, {biases[2]}), Packed({weights[3]}, {biases[3]})));
  }

  void switch_head(const Tensor& norm_weight, const Tensor& norm_bias, double epsilon, bool is_peri,
                   int64_t heads, const std::vector<Tensor>& query_key,
                   const std::vector<Optional>& biases, const std::vector<Tensor>& routers,
                   const Tensor& value, const Tensor& output, int64_t top_k) {
    attentions_.push_back(std::make_unique<SwitchHead>(
        LayerNorm{norm_weight, norm_bias, float(epsilon)}, is_peri,
        sizes(heads, heads, query_key.at(0)), Packed(query_key, biases), Packed(routers, {}),
        value.contiguous(), output.contiguous(), top_k));
  }

  void dense_feed_forward(const Optional& norm_weight, const Optional& norm_bias, double epsilon,
                          bool is_peri, const Tensor& up, const Optional& up_bias,
                          const Tensor& down, const Optional& down_bias) {
    feed_forwards_.push_back(std::make_unique<DenseFeedForward>(
        norm_of(norm_weight, norm_bias, epsilon), is_peri, Packed({up}, {up_bias}),
        Packed({down}, {down_bias})));
  }

  void expert_feed_forward(const Tensor& norm_weight, const Tensor& norm_bias, double epsilon,
                           bool is_peri, const Tensor& router, const Tensor& up,
                           const Tensor& down, int64_t top_k) {
    feed_forwards_.push_back(std::make_unique<ExpertFeedForward>(
        LayerNorm{norm_weight, norm_bias, float(epsilon)}, is_peri, Packed({router}, {}),
        up.contiguous(), down.contiguous(), top_k));
  }

  void head(const Optional& norm_weight, const Optional& norm_bias, double epsilon,
            const Tensor& weight, const Optional& bias) {
    final_norm_ = norm_of(norm_weight, norm_bias, epsilon);
    head_ = Packed({weight}, {bias});
  }

  // The logits (N, V) of embedded tokens (N, D) at `columns` (N) of their rows, through `layers`.
  // keys and values (N, G, C, d) of each application hold the tokens before, and take up these.
  Tensor run(const Tensor& x, const Tensor& columns, const std::vector<int64_t>& layers,
             const std::vector<Tensor>& keys, const std::vector<Tensor>& values) {
    const int64_t count = x.size(0), width = x.size(1);
    pass_.x.shape(count, width);
    const float* source = read(x);
    for (int64_t i = 0; i < count; ++i)
      std::copy(source + i * width, source + (i + 1) * width, pass_.x[i]);
    const int64_t* at = columns.const_data_ptr<int64_t>();
    pass_.columns.assign(at, at + count);
    for (size_t a = 0; a < layers.size(); ++a)
      for (int64_t i = 0; i < count; ++i)
        TORCH_CHECK(keys.at(a).is_contiguous() && values.at(a).is_contiguous() &&
                        keys[a].size(0) == count && at[i] >= 0 && at[i] < keys[a].size(2),
                    "application ", a, " has no room for column ", at[i]);
    turn();
    for (size_t a = 0; a < layers.size(); ++a) {
      attentions_.at(layers[a])->run(pass_, keys[a], values[a]);
      feed_forwards_.at(layers[a])->run(pass_);
    }
    const Rows* last = &pass_.x;
    if (final_norm_.has_value()) {
      final_norm_->apply(pass_.x, pass_.normed);
      last = &pass_.normed;
    }
    Tensor logits = at::empty({count, head_.outputs()}, x.options());
    head_.set(left_of(*last), write(logits), head_.outputs());
    return logits;
  }

 private:
  static std::optional<LayerNorm> norm_of(const Optional& weight, const Optional& bias,
                                          double epsilon) {
    if (!weight.has_value()) return std::nullopt;
    return LayerNorm{*weight, bias.value(), float(epsilon)};
  }

  HeadSizes sizes(int64_t heads, int64_t key_heads, const Tensor& query) const {
    return {heads, key_heads, query.size(0) / heads, frequencies_, neighbours_};
  }

  // The angles of this pass, which are those of all layers.
  void turn() {
    const int64_t pairs = frequencies_.size(0), count = pass_.x.count;
    pass_.cosine.shape(count, pairs), pass_.sine.shape(count, pairs);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < pairs; ++j) {
        const float angle = float(pass_.columns[i]) * read(frequencies_)[j];
        pass_.cosine[i][j] = std::cos(angle), pass_.sine[i][j] = std::sin(angle);
      }
  }

  Tensor frequencies_;
  bool neighbours_;
  std::vector<std::unique_ptr<AttentionLayer>> attentions_;
  std::vector<std::unique_ptr<FeedForward>> feed_forwards_;
  std::optional<LayerNorm> final_norm_;
  Packed head_;
  Passing pass_;
};

}  // namespace moeut

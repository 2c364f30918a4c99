// One token of each of a few rows through all layers of a plain stack in one call, so that what
// stands between the products costs next to nothing.
//
// N rows, D model, H heads, G key heads, d head size, F hidden units, C columns that a cache has
// room for. A sublayer reads the state x (N, D) through a norm and adds its output to it.
#pragma once

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "rows.h"
#include "token.h"

namespace moeut {

// (x - mean) / sqrt(variance + epsilon) · weight + bias, of each row.
struct LayerNorm {
  Tensor weight, bias;
  float epsilon;

  void apply(const Rows& x, Rows& target) const {
    target.shape(x.count, x.width);
    for (int64_t i = 0; i < x.count; ++i) apply(x[i], x.width, target[i]);
  }

 private:
  // Behind the width, x has zeros up to a multiple of 16.
  void apply(const float* x, int64_t width, float* target) const {
    const float *scale = read(weight), *shift = read(bias);
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int64_t c = 0; c < width; c += kLanes) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + c));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / float(width));
    for (int64_t c = 0; c < width; c += kLanes) {
      const __m512 apart = _mm512_maskz_sub_ps(mask_of(width - c), _mm512_loadu_ps(x + c), mean);
      squares = _mm512_fmadd_ps(apart, apart, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / float(width);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(variance + epsilon));
    for (int64_t c = 0; c < width; c += kLanes) {
      const __mmask16 mask = mask_of(width - c);
      const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + c), mean), factor);
      _mm512_mask_storeu_ps(target + c, mask,
                            _mm512_fmadd_ps(normed, _mm512_maskz_loadu_ps(mask, scale + c),
                                            _mm512_maskz_loadu_ps(mask, shift + c)));
    }
  }
};

// What all sublayers of a pass read and write; it keeps its memory from pass to pass.
struct Passing {
  Rows x, normed;
  Rows heads;     // (N, (H + 2 G) d): queries, keys, values
  Rows attended;  // (N, H d)
  Rows hidden;    // (N, F)
  Rows cosine, sine;
  Nonzero nonzero;
  std::vector<int64_t> columns;  // (N) of each new token in its row
};

inline Left left_of(const Rows& rows) { return {rows[0], rows.stride, rows.count, rows.width}; }

inline void relu_rows(float* rows, int64_t stride, int64_t count) {
  for (int64_t i = 0; i < count * stride; i += kLanes)  // in this order a NaN stays one
    _mm512_storeu_ps(rows + i, _mm512_max_ps(_mm512_setzero_ps(), _mm512_loadu_ps(rows + i)));
}

// What sublayers have in common: a softmax or a sigmoid follows what they make of the routed view
// of the state; all else they make of the plain view, which with `peri` is not normed.
class Sublayer {
 public:
  Sublayer(std::optional<LayerNorm> norm, bool is_peri)
      : norm_(std::move(norm)), is_peri_(is_peri) {}
  virtual ~Sublayer() = default;

 protected:
  void norm(Passing& pass) const {
    if (norm_.has_value()) norm_->apply(pass.x, pass.normed);
  }
  const Rows& routed(const Passing& pass) const {
    return norm_.has_value() ? pass.normed : pass.x;
  }
  const Rows& plain(const Passing& pass) const { return is_peri_ ? pass.x : routed(pass); }

 private:
  std::optional<LayerNorm> norm_;
  bool is_peri_;
};

class FeedForward : public Sublayer {
 public:
  using Sublayer::Sublayer;
  virtual void run(Passing& pass) = 0;
};

// x += relu(n Uᵀ + a) Wᵀ + b
class DenseFeedForward : public FeedForward {
 public:
  DenseFeedForward(std::optional<LayerNorm> norm, bool is_peri, Packed up, Packed down)
      : FeedForward(std::move(norm), is_peri), up_(std::move(up)), down_(std::move(down)) {}

  void run(Passing& pass) override {
    norm(pass);
    pass.hidden.shape(pass.x.count, up_.outputs());
    up_.set(left_of(plain(pass)), pass.hidden[0], pass.hidden.stride);
    relu_rows(pass.hidden[0], pass.hidden.stride, pass.hidden.count);
    down_.increase(pass.nonzero.of(left_of(pass.hidden)), pass.x[0], pass.x.stride);
  }

 private:
  Packed up_, down_;
};

// Heads, and how positions turn them: pair i of the first 2 R channels by column · frequency i.
// Pairs are channels i and i + R or, if they are neighbours, 2 i and 2 i + 1.
struct HeadSizes {
  int64_t heads, key_heads, size;
  Tensor frequencies;  // (R)
  bool neighbours;

  int64_t rotated() const { return frequencies.size(0); }
  int64_t queries() const { return heads * size; }
  int64_t keys() const { return key_heads * size; }

  void rotate(float* head, const float* cosine, const float* sine) const {
    const int64_t pairs = rotated(), apart = neighbours ? 1 : pairs, step = neighbours ? 2 : 1;
    for (int64_t i = 0; i < pairs; ++i) {
      float &first = head[i * step], &second = head[i * step + apart];
      const float turned = first * cosine[i] - second * sine[i];
      second = second * cosine[i] + first * sine[i];
      first = turned;
    }
  }
};

class AttentionLayer : public Sublayer {
 public:
  AttentionLayer(std::optional<LayerNorm> norm, bool is_peri, HeadSizes sizes)
      : Sublayer(std::move(norm), is_peri), sizes_(std::move(sizes)) {}

  // key and value (N, G, C, d) hold the tokens before, and take up these.
  void run(Passing& pass, const Tensor& key, const Tensor& value) {
    norm(pass);
    pass.heads.shape(pass.x.count, sizes_.queries() + 2 * sizes_.keys());
    pass.attended.shape(pass.x.count, sizes_.queries());
    project(pass);
    turn(pass);
    store(pass, sizes_.queries(), key);
    store(pass, sizes_.queries() + sizes_.keys(), value);
    attend(pass, key, value);
    output(pass);
  }

 protected:
  virtual void project(Passing& pass) = 0;
  virtual void output(Passing& pass) = 0;

  HeadSizes sizes_;

 private:
  // The angles of a pass are the same in all layers.
  void turn(Passing& pass) const {
    for (int64_t i = 0; i < pass.x.count; ++i)
      for (int64_t h = 0; h < sizes_.heads + sizes_.key_heads; ++h)
        sizes_.rotate(pass.heads[i] + h * sizes_.size, pass.cosine[i], pass.sine[i]);
  }

  // Write the key heads from column `first` of what was projected to the cache.
  void store(const Passing& pass, int64_t first, const Tensor& kept) const {
    float* memory = kept.mutable_data_ptr<float>();
    for (int64_t i = 0; i < pass.x.count; ++i)
      for (int64_t g = 0; g < sizes_.key_heads; ++g) {
        const float* source = pass.heads[i] + first + g * sizes_.size;
        float* target = memory + i * kept.stride(0) + g * kept.stride(1);
        std::copy(source, source + sizes_.size, target + pass.columns[i] * sizes_.size);
      }
  }

  void attend(Passing& pass, const Tensor& key, const Tensor& value) const {
    const int64_t heads = sizes_.heads, size = sizes_.size, of_group = heads / sizes_.key_heads;
    const float *k = read(key), *v = read(value), scale = 1.0f / std::sqrt(float(size));
    const int64_t cost = std::max<int64_t>(1, *std::max_element(pass.columns.begin(),
                                                                pass.columns.end()) * size);
    at::parallel_for(0, pass.x.count * heads, (1 << 18) / cost + 1, [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j) {
        const int64_t i = j / heads, h = j % heads, count = pass.columns[i] + 1;
        const auto start = [&](int64_t one) {
          return one / heads * key.stride(0) + one % heads / of_group * key.stride(1);
        };
        const int64_t ahead = start(j + kAhead) - start(j);
        float* weights = scratch(0, count);
        token_logits(pass.heads[i] + h * size, {k + start(j), size, 1}, count, size, ahead,
                     weights);
        for (int64_t t = 0; t < count; ++t) weights[t] *= scale;
        softmax_row(weights, weights, count);
        token_mix(weights, {v + start(j), size, 1}, count, size, ahead,
                  pass.attended[i] + h * size);
      }
    });
  }
};

class DenseAttention : public AttentionLayer {
 public:
  DenseAttention(std::optional<LayerNorm> norm, bool is_peri, HeadSizes sizes, Packed query_key,
                 Packed value, Packed output)
      : AttentionLayer(std::move(norm), is_peri, std::move(sizes)),
        query_key_(std::move(query_key)), value_(std::move(value)), output_(std::move(output)) {}

 protected:
  void project(Passing& pass) override {
    query_key_.set(left_of(routed(pass)), pass.heads[0], pass.heads.stride);
    value_.set(left_of(plain(pass)), pass.heads[0] + query_key_.outputs(), pass.heads.stride);
  }
  void output(Passing& pass) override {
    output_.increase(left_of(pass.attended), pass.x[0], pass.x.stride);
  }

 private:
  Packed query_key_, value_, output_;
};

}  // namespace moeut

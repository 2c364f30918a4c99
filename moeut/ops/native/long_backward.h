// The gradients of attention of long sequences: a block of keys at a time, whose weights with each
// block of queries are computed again from the logarithms of sums that long_attention.h keeps.
#pragma once

#include "long_attention.h"

namespace moeut {

// A block of keys of one row, and the gradients that it has summed up.
struct KeyBlock {
  int64_t first, count;             // its columns
  float *panel, *value_panel;       // keys and values, (d, 64)
  float *keys, *d_keys, *d_values;  // (64, padded)
};

// Of one head, (T, padded): queries times the scale, gradients of results and of queries, and of
// each query the scalar product of its result and its gradient.
struct Asking {
  float *queries, *gradients, *d_queries, *means;
  const float* logarithms;
};

// Make of the logits of a query and of the gradients of its weights, (64) each, the weights that
// values were mixed by and the gradients of the logits.
inline void weigh_again(const Seen& seen, float logarithm, float mean, const Kept& kept,
                        int64_t query, int64_t first_key, float* weights, float* gradients) {
  __m512 x[kBlockVectors], g[kBlockVectors];
  seen.load(weights, x);
#pragma GCC unroll 4
  for (int v = 0; v < kBlockVectors; ++v) {
    x[v] = exp16(_mm512_sub_ps(x[v], _mm512_set1_ps(logarithm)));
    g[v] = _mm512_maskz_loadu_ps(seen.mask(v), gradients + v * kLanes);
  }
  kept.apply(query, first_key, g);
#pragma GCC unroll 4
  for (int v = 0; v < kBlockVectors; ++v)
    _mm512_storeu_ps(gradients + v * kLanes,
                     _mm512_mul_ps(x[v], _mm512_sub_ps(g[v], _mm512_set1_ps(mean))));
  kept.apply(query, first_key, x);
#pragma GCC unroll 4
  for (int v = 0; v < kBlockVectors; ++v) _mm512_storeu_ps(weights + v * kLanes, x[v]);
}

// The backward pass of some rows and key heads, by one thread.
class LongBackward {
 public:
  LongBackward(const Attending& a, const Reach& reach, const Dropping& dropping)
      : a_(a), reach_of_(reach), dropping_(dropping), row_(round_up(a.size, kLanes)),
        value_row_(round_up(a.value_size, kLanes)), arena_(floats()), heads_(a.groups) {
    for (Asking& head : heads_) {
      head.queries = arena_.take(a.queries * row_), head.d_queries = arena_.take(a.queries * row_);
      head.gradients = arena_.take(a.queries * value_row_), head.means = arena_.take(a.queries);
    }
    weights_ = arena_.take(kBlockQueries * kBlockKeys);
    d_logits_ = arena_.take(kBlockQueries * kBlockKeys);
    block_.panel = arena_.take(kBlockKeys * a.size);
    block_.value_panel = arena_.take(kBlockKeys * a.value_size);
    block_.keys = arena_.take(kBlockKeys * row_), block_.d_keys = arena_.take(kBlockKeys * row_);
    block_.d_values = arena_.take(kBlockKeys * value_row_);
  }

  // Take up the queries of head number `i` of a group, whose results are `out`.
  void take(int64_t i, const Matrix& queries, const Matrix& gradients, const Matrix& out,
            const float* logarithms) {
    Asking& head = heads_[i];
    head.logarithms = logarithms;
    copy_rows(queries, a_.queries, a_.size, a_.scale, head.queries);
    copy_rows(gradients, a_.queries, a_.value_size, 1.0f, head.gradients);
    std::fill(head.d_queries, head.d_queries + a_.queries * row_, 0.0f);
    for (int64_t t = 0; t < a_.queries; ++t)
      head.means[t] =
          dot(gradients.data + t * gradients.row, out.data + t * out.row, a_.value_size);
  }

  // Compute the gradients of the keys and values of row b from `first` on, and add to those of
  // queries. Head number 0 of the group is `head` of the row.
  const KeyBlock& run(int64_t b, int64_t head, const Matrix& keys, const Matrix& values,
                      int64_t first) {
    block_.first = first, block_.count = std::min(kBlockKeys, a_.keys - first);
    pack_columns(keys, first, a_.keys, a_.size, block_.panel);
    pack_columns(values, first, a_.keys, a_.value_size, block_.value_panel);
    const Matrix here{keys.data + first * keys.row, keys.row, 1};
    copy_rows(here, block_.count, a_.size, 1.0f, block_.keys);
    std::fill(block_.d_keys, block_.d_keys + kBlockKeys * row_, 0.0f);
    std::fill(block_.d_values, block_.d_values + kBlockKeys * value_row_, 0.0f);
    for (int64_t i = 0; i < a_.groups; ++i) {
      const Kept kept(dropping_, b * a_.heads + head + i, a_.keys);
      for (int64_t start = 0; start < a_.queries; start += kBlockQueries) {
        const int64_t rows = std::min(kBlockQueries, a_.queries - start);
        if (extent_of(reach_of_.of(b) + start, rows, first) == 0) continue;
        weigh_queries(heads_[i], b, start, rows, kept);
        sum_over_queries(heads_[i], reach_of_.of(b) + start, start, rows);
      }
    }
    return block_;
  }

  const float* d_queries(int64_t i) const { return heads_[i].d_queries; }

 private:
  int64_t floats() const {
    const int64_t of_head = a_.queries * (2 * row_ + value_row_ + 1) + kLanes;
    return a_.groups * of_head +
           kBlockKeys * (a_.size + a_.value_size + 2 * row_ + value_row_ + 2 * kBlockQueries);
  }

  // Weights of some queries and the block, the gradients of their logits, and those of the queries.
  void weigh_queries(const Asking& head, int64_t b, int64_t start, int64_t rows, const Kept& kept) {
    const int64_t* reach = reach_of_.of(b);
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const int64_t here = std::min(kTileRows, rows - i), t = start + i;
      const int64_t extent = extent_of(reach + t, here, block_.first);
      float *weights = weights_ + i * kBlockKeys, *d_logits = d_logits_ + i * kBlockKeys;
      multiply_tile(here, extent, a_.size, {head.queries + t * row_, row_, 1}, block_.panel,
                    kBlockKeys, weights, kBlockKeys, false);
      multiply_tile(here, extent, a_.value_size, {head.gradients + t * value_row_, value_row_, 1},
                    block_.value_panel, kBlockKeys, d_logits, kBlockKeys, false);
      for (int64_t j = 0; j < here; ++j)
        weigh_again({a_, reach, b, t + j, block_.first}, head.logarithms[t + j], head.means[t + j],
                    kept, t + j, block_.first, weights + j * kBlockKeys, d_logits + j * kBlockKeys);
      multiply_tile(here, row_, extent, {d_logits, kBlockKeys, 1}, block_.keys, row_,
                    head.d_queries + t * row_, row_, true);
    }
  }

  // Add to the gradients of the block what those of some queries are; `reach` is what they see.
  void sum_over_queries(const Asking& head, const int64_t* reach, int64_t start, int64_t rows) {
    int64_t first = 0;  // of the queries that see a key of the tile
    for (int64_t j = 0; j < block_.count; j += kTileRows) {
      const int64_t here = std::min(kTileRows, block_.count - j);
      while (first < rows && reach[first] <= block_.first + j) ++first;
      if (first == rows) return;
      const int64_t at = first * kBlockKeys + j, query = start + first;
      multiply_tile(here, value_row_, rows - first, {weights_ + at, 1, kBlockKeys},
                    head.gradients + query * value_row_, value_row_,
                    block_.d_values + j * value_row_, value_row_, true);
      multiply_tile(here, row_, rows - first, {d_logits_ + at, 1, kBlockKeys},
                    head.queries + query * row_, row_, block_.d_keys + j * row_, row_, true);
    }
  }

  const Attending& a_;
  const Reach& reach_of_;
  const Dropping& dropping_;
  const int64_t row_, value_row_;
  Arena arena_;
  std::vector<Asking> heads_;
  KeyBlock block_;
  float *weights_, *d_logits_;  // (queries, 64)
};

// The gradients of q, k and v.
inline variable_list long_attention_backward(const Tensor& gradient, const Tensor& q,
                                             const Tensor& k, const Tensor& v,
                                             const std::optional<Tensor>& bias, const Tensor& out,
                                             const Tensor& logarithms, const Dropping& dropping,
                                             double scale, bool causal) {
  const Attending a(q, k, v, bias, {}, scale, causal);
  const int64_t key_heads = a.heads / a.groups;
  Tensor d_q = empty_heads(a.batch, a.heads, a.queries, a.size, q);
  Tensor d_k = empty_heads(a.batch, key_heads, a.keys, a.size, q);
  Tensor d_v = empty_heads(a.batch, key_heads, a.keys, a.value_size, q);
  const Heads from_g(gradient), from_q(q), from_k(k), from_v(v), from_out(out);
  const Heads of_q(d_q), of_k(d_k), of_v(d_v);
  float *to_q = write(d_q), *to_k = write(d_k), *to_v = write(d_v);
  const float* sums = read(logarithms);
  const Reach reach(a);
  at::parallel_for(0, a.batch * key_heads, 1, [&](int64_t from, int64_t to) {
    LongBackward work(a, reach, dropping);
    for (int64_t item = from; item < to; ++item) {
      const int64_t b = item / key_heads, group = item % key_heads, head = group * a.groups;
      for (int64_t i = 0; i < a.groups; ++i)
        work.take(i, from_q.at(b, head + i), from_g.at(b, head + i), from_out.at(b, head + i),
                  sums + (b * a.heads + head + i) * a.queries);
      for (int64_t j = 0; j < a.keys; j += kBlockKeys) {
        const KeyBlock& block = work.run(b, head, from_k.at(b, group), from_v.at(b, group), j);
        copy_back(block.d_keys, block.count, a.size, 1.0f,
                  to_k + b * of_k.batch + group * of_k.head + j * of_k.row, of_k.row);
        copy_back(block.d_values, block.count, a.value_size, 1.0f,
                  to_v + b * of_v.batch + group * of_v.head + j * of_v.row, of_v.row);
      }
      for (int64_t i = 0; i < a.groups; ++i)
        copy_back(work.d_queries(i), a.queries, a.size, a.scale,
                  to_q + b * of_q.batch + (head + i) * of_q.head, of_q.row);
    }
  });
  return {d_q, d_k, d_v};
}

}  // namespace moeut

// Attention of short sequences: logits with or without relative positions, softmax, mix of values.
//
// logits[t, j] = scale * ((q_t + u) . k_j + (q_t + w) . r[j - t + T - 1]) + bias[t, j]
//
// B rows, H heads, T queries, K keys, d channels of a head, W >= T + K - 1 distances. u and w (H, d)
// and r (W, H, d) are there with relative positions alone (arXiv 1901.02860). Key head h / (H / G)
// serves head h. Kept for backward are the inputs and the weights (B, H, T, K) after the softmax.
#pragma once

#include <cmath>
#include <optional>

#include "dropout.h"
#include "softmax.h"
#include "tensors.h"

namespace moeut {

struct Relative {
  Tensor content, position, table;  // u, w (H, d); r (W, H, d); all undefined without
};

// Weights are dropped with a probability, by a seed; 0: none are.
struct Dropping {
  float probability = 0.0f;
  uint64_t seed = 0;

  // Write weights with some dropped, those of one row and head, and return them; all, as they are,
  // without.
  const float* apply(const float* weights, float* target, int64_t count, int64_t stream) const {
    if (probability == 0.0f) return weights;
    drop(weights, target, count, probability, seed, uint64_t(stream));
    return target;
  }
};

// Queries, keys or values (B, H, T, d) as matrices of one row and head.
struct Heads {
  const float* data;
  int64_t batch, head, row;

  explicit Heads(const Tensor& x)
      : data(read(x)), batch(x.stride(0)), head(x.stride(1)), row(x.stride(2)) {}
  Matrix at(int64_t b, int64_t h) const { return {data + b * batch + h * head, row, 1}; }
};

inline Tensor with_channels_last(const Tensor& x) { return x.stride(-1) == 1 ? x : x.contiguous(); }

// An uninitialised (B, H, T, d) whose memory is (B, T, H, d), as projections have it.
inline Tensor empty_heads(int64_t batch, int64_t heads, int64_t length, int64_t size,
                          const Tensor& like) {
  return at::empty({batch, length, heads, size}, like.options()).transpose(1, 2);
}

// Sizes, and where things are, of one call.
struct Attending {
  int64_t batch, heads, groups, queries, keys, size, value_size, width;
  float scale;
  bool causal;
  const float *u = nullptr, *w = nullptr, *r = nullptr;
  const float* bias = nullptr;
  int64_t bias_batch = 0, bias_row = 0;

  Attending(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& added,
            const Relative& relative, double scale_, bool causal_)
      : batch(q.size(0)), heads(q.size(1)), groups(q.size(1) / k.size(1)), queries(q.size(2)),
        keys(k.size(2)), size(q.size(3)), value_size(v.size(3)), width(0), scale(float(scale_)),
        causal(causal_) {
    if (relative.table.defined()) {
      u = read(relative.content), w = read(relative.position), r = read(relative.table);
      width = relative.table.size(0);
    }
    if (added.has_value()) {
      bias = read(*added);
      bias_batch = added->size(0) == 1 ? 0 : added->stride(0);
      bias_row = added->size(2) == 1 ? 0 : added->stride(2);
    }
  }

  // r of one head: (W, d).
  Matrix table(int64_t h) const { return {r + h * size, heads * size, 1}; }
  // Of the scores of query t by distance, (T, W), those of its keys.
  int64_t first_distance(int64_t t) const { return queries - 1 - t; }
};

// Write q + added (T, d), or q where there is nothing to add.
inline void add_to_rows(const Matrix& q, const float* added, int64_t rows, int64_t size,
                        float* target) {
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t c = 0; c < size; ++c)
      target[t * size + c] = q.data[t * q.row + c] + (added == nullptr ? 0.0f : added[c]);
}

// How many keys there are up to the last that the bias of a query shows, all if it shows none: a
// softmax over the others, too, gives the same bits.
inline int64_t count_seen(const float* bias, int64_t keys) {
  int64_t seen = keys;
  while (seen > 0 && std::isinf(bias[seen - 1]) && bias[seen - 1] < 0.0f) --seen;
  return seen == 0 ? keys : seen;
}

// Share rows and heads among threads. With relative positions, whose gradients are sums over rows,
// a thread has all rows of a head.
template <typename Work>
void share_heads(const Attending& a, const Work& work) {
  const int64_t cost = std::max<int64_t>(1, a.queries * a.keys * a.size);
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / cost);
  if (a.r != nullptr) {
    at::parallel_for(0, a.heads / a.groups, std::max<int64_t>(1, grain / a.batch),
                     [&](int64_t from, int64_t to) {
                       for (int64_t h = from * a.groups; h < to * a.groups; ++h)
                         for (int64_t b = 0; b < a.batch; ++b) work(b, h);
                     });
    return;
  }
  at::parallel_for(0, a.batch, std::max<int64_t>(1, grain / a.heads), [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b)
      for (int64_t h = 0; h < a.heads; ++h) work(b, h);
  });
}

// Make weights of the products of query t of row b with all keys.
inline void weigh_row(const Attending& a, int64_t b, int64_t t, float* row) {
  // A causal query has the columns of its keys, so that key j is behind query t if j > t.
  int64_t seen = a.causal ? std::min(t + 1, a.keys) : a.keys;
  const float* added = a.bias == nullptr ? nullptr : a.bias + b * a.bias_batch + t * a.bias_row;
  if (added != nullptr) seen = count_seen(added, seen);
  for (int64_t j = 0; j < seen; ++j)
    row[j] = row[j] * a.scale + (added == nullptr ? 0.0f : added[j]);
  softmax_row(row, row, seen);
  std::fill(row + seen, row + a.keys, 0.0f);
}

// The result (B, H, T, d), and the weights (B, H, T, K) before any is dropped.
inline std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias,
    const Relative& relative, const Dropping& dropping, double scale, bool causal) {
  const Attending a(q, k, v, bias, relative, scale, causal);
  Tensor out = empty_heads(a.batch, a.heads, a.queries, a.value_size, q);
  Tensor kept = at::empty({a.batch, a.heads, a.queries, a.keys}, q.options());
  const Heads from_q(q), from_k(k), from_v(v), to_out(out);
  float *weights = write(kept), *target = write(out);
  const int64_t cells = a.queries * a.keys;
  share_heads(a, [&](int64_t b, int64_t h) {
    const Matrix mine = from_q.at(b, h), key = from_k.at(b, h / a.groups);
    float* p = weights + (b * a.heads + h) * cells;
    float* shifted = scratch(0, a.queries * a.size + cells);
    Matrix asking = mine;
    if (a.u != nullptr) {
      add_to_rows(mine, a.u + h * a.size, a.queries, a.size, shifted);
      asking = {shifted, a.size, 1};
    }
    multiply(a.queries, a.keys, a.size, asking, key.transposed(), p, a.keys);
    if (a.r != nullptr) {
      float* scores = scratch(1, a.queries * a.width);
      add_to_rows(mine, a.w + h * a.size, a.queries, a.size, shifted);
      multiply(a.queries, a.width, a.size, {shifted, a.size, 1}, a.table(h).transposed(), scores,
               a.width);
      for (int64_t t = 0; t < a.queries; ++t)
        add_row(p + t * a.keys, scores + t * a.width + a.first_distance(t), a.keys);
    }
    for (int64_t t = 0; t < a.queries; ++t) weigh_row(a, b, t, p + t * a.keys);
    const float* mixed = dropping.apply(p, scratch(0, cells), cells, b * a.heads + h);
    multiply(a.queries, a.value_size, a.keys, {mixed, a.keys, 1}, from_v.at(b, h / a.groups),
             target + b * to_out.batch + h * to_out.head, to_out.row);
  });
  return {out, kept};
}

// The gradients of q, k, v, u, w, r; the last three undefined without relative positions.
inline variable_list attention_backward(const Tensor& gradient, const Tensor& q, const Tensor& k,
                                        const Tensor& v, const Relative& relative,
                                        const Dropping& dropping, const Tensor& kept,
                                        double scale, bool causal) {
  const Attending a(q, k, v, std::nullopt, relative, scale, causal);
  const int64_t cells = a.queries * a.keys, key_heads = a.heads / a.groups;
  Tensor d_q = empty_heads(a.batch, a.heads, a.queries, a.size, q);
  Tensor d_k = empty_heads(a.batch, key_heads, a.keys, a.size, q);
  Tensor d_v = empty_heads(a.batch, key_heads, a.keys, a.value_size, q);
  Tensor d_u, d_w, d_r;
  if (a.r != nullptr) {
    d_u = at::zeros_like(relative.content), d_w = at::zeros_like(relative.position);
    d_r = at::zeros_like(relative.table);
  }
  const Heads from_g(gradient), from_q(q), from_k(k), from_v(v), of_q(d_q), of_k(d_k), of_v(d_v);
  float *to_q = write(d_q), *to_k = write(d_k), *to_v = write(d_v);
  float *to_u = nullptr, *to_w = nullptr, *to_r = nullptr;
  if (a.r != nullptr) to_u = write(d_u), to_w = write(d_w), to_r = write(d_r);
  const float* weights = read(kept);
  share_heads(a, [&](int64_t b, int64_t h) {
    const int64_t group = h / a.groups;
    const Matrix g = from_g.at(b, h), mine = from_q.at(b, h), key = from_k.at(b, group),
                 value = from_v.at(b, group);
    const float* p = weights + (b * a.heads + h) * cells;
    float* d_logits = scratch(0, 2 * cells + 2 * a.queries * a.size);
    float *mixed = d_logits + cells, *shifted = mixed + cells, *part = shifted + a.queries * a.size;
    Finish onto;  // the heads of a group add up in the gradients of their key and value
    onto.accumulate = h % a.groups != 0;
    const float* used = dropping.apply(p, mixed, cells, b * a.heads + h);
    multiply(a.keys, a.value_size, a.queries, {used, 1, a.keys}, g,
             to_v + b * of_v.batch + group * of_v.head, of_v.row, onto);
    multiply(a.queries, a.keys, a.value_size, g, value.transposed(), d_logits, a.keys);
    dropping.apply(d_logits, d_logits, cells, b * a.heads + h);
    for (int64_t t = 0; t < a.queries; ++t) {
      float* row = d_logits + t * a.keys;
      const float* weight = p + t * a.keys;
      const float mean = dot(row, weight, a.keys);
      for (int64_t j = 0; j < a.keys; ++j) row[j] = (row[j] - mean) * weight[j] * a.scale;
    }
    float* out_q = to_q + b * of_q.batch + h * of_q.head;
    multiply(a.queries, a.size, a.keys, {d_logits, a.keys, 1}, key, out_q, of_q.row);
    Matrix asking = mine;
    if (a.r != nullptr) {
      for (int64_t t = 0; t < a.queries; ++t)
        add_row(to_u + h * a.size, out_q + t * of_q.row, a.size);
      add_to_rows(mine, a.u + h * a.size, a.queries, a.size, shifted);
      asking = {shifted, a.size, 1};
    }
    multiply(a.keys, a.size, a.queries, {d_logits, 1, a.keys}, asking,
             to_k + b * of_k.batch + group * of_k.head, of_k.row, onto);
    if (a.r != nullptr) {
      float* by_distance = scratch(1, a.queries * a.width);
      std::fill(by_distance, by_distance + a.queries * a.width, 0.0f);
      for (int64_t t = 0; t < a.queries; ++t)
        std::copy(d_logits + t * a.keys, d_logits + (t + 1) * a.keys,
                  by_distance + t * a.width + a.first_distance(t));
      multiply(a.queries, a.size, a.width, {by_distance, a.width, 1}, a.table(h), part, a.size);
      for (int64_t t = 0; t < a.queries; ++t) {
        add_row(to_w + h * a.size, part + t * a.size, a.size);
        add_row(out_q + t * of_q.row, part + t * a.size, a.size);
      }
      add_to_rows(mine, a.w + h * a.size, a.queries, a.size, shifted);
      Finish sum;
      sum.accumulate = true;
      multiply(a.width, a.size, a.queries, {by_distance, 1, a.width}, {shifted, a.size, 1},
               to_r + h * a.size, a.heads * a.size, sum);
    }
  });
  return {d_q, d_k, d_v, d_u, d_w, d_r};
}

}  // namespace moeut

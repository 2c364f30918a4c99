// Attention of long sequences, in blocks of queries and keys whose weights are never all there at
// once (FlashAttention-2, arXiv 2307.08691).
//
// logits[t, j] = scale * q_t . k_j + bias[t, j], hidden where j > t if causal. Shapes are those of
// attention.h. Kept for backward are the result and, of each query, the logarithm of the sum of the
// exponentials of its logits (B, H, T), from which weights are computed again.
//
// Blocks begin at fixed columns, and keys that are hidden add exact zeros or are skipped: the bits
// of a row depend neither on the number of threads, nor on the other rows, nor on how many hidden
// keys follow. A query that sees no key has the result 0, as in PyTorch's fused attention.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "attention.h"

namespace moeut {

constexpr int64_t kBlockKeys = kTileColumns;
constexpr int64_t kBlockQueries = 16 * kTileRows;  // their weights for a block of keys: 24 KiB
constexpr int kBlockVectors = kBlockKeys / kLanes;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Memory of this thread, cut into parts that begin where a cache line does.
class Arena {
 public:
  explicit Arena(int64_t size) {
    const auto address = reinterpret_cast<uintptr_t>(scratch(0, size + kLanes));
    next_ = reinterpret_cast<float*>((address + 63) / 64 * 64);
  }
  float* take(int64_t size) {
    float* taken = next_;
    next_ += round_up(size, kLanes);
    return taken;
  }

 private:
  float* next_;
};

// target (rows, padded) = factor * source (rows, size), 0 behind; padded is size in whole vectors.
inline void copy_rows(const Matrix& source, int64_t rows, int64_t size, float factor,
                      float* target) {
  const int64_t padded = round_up(size, kLanes);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < size; c += kLanes)
      _mm512_storeu_ps(target + i * padded + c,
                       _mm512_mul_ps(_mm512_set1_ps(factor),
                                     _mm512_maskz_loadu_ps(mask_of(size - c),
                                                           source.data + i * source.row + c)));
}

// target (rows, size), of rows `row` floats apart, = factor * source (rows, padded).
inline void copy_back(const float* source, int64_t rows, int64_t size, float factor, float* target,
                      int64_t row) {
  const int64_t padded = round_up(size, kLanes);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < size; c += kLanes)
      _mm512_mask_storeu_ps(
          target + i * row + c, mask_of(size - c),
          _mm512_mul_ps(_mm512_set1_ps(factor), _mm512_loadu_ps(source + i * padded + c)));
}

// C (rows, columns) = or += A (rows, depth) B, of at most kTileRows rows; every row of B and C is
// whole vectors.
inline void multiply_tile(int64_t rows, int64_t columns, int64_t depth, const Matrix& a,
                          const float* b, int64_t b_row, float* c, int64_t c_row, bool adds) {
  Finish finish;
  finish.accumulate = adds;
  for (int64_t j = 0; j < columns; j += kTileColumns) {
    const int64_t vectors = (std::min(kTileColumns, columns - j) + kLanes - 1) / kLanes;
    choose_tile(rows, vectors, false)(depth, a, b + j, b_row, c + j, c_row, __mmask16(0xffff),
                                      true, true, {b, 0}, finish);
  }
}

// How many keys each query sees, up to the last that it sees: (B or 1, T).
struct Reach {
  std::vector<int64_t> count;
  int64_t batch = 0;

  explicit Reach(const Attending& a)
      : count((a.bias_batch == 0 ? 1 : a.batch) * a.queries),
        batch(a.bias_batch == 0 ? 0 : a.queries) {
    for (int64_t i = 0; i < int64_t(count.size()); ++i) {
      const int64_t t = i % a.queries;
      int64_t seen = a.causal ? std::min(t + 1, a.keys) : a.keys;
      if (a.bias != nullptr && a.bias_row == 0 && t > 0) {
        seen = std::min(seen, count[i - t]);
      } else if (a.bias != nullptr) {
        const float* bias = a.bias + i / a.queries * a.bias_batch + t * a.bias_row;
        while (seen > 0 && bias[seen - 1] == -kInfinity) --seen;
      }
      count[i] = seen;
    }
  }
  const int64_t* of(int64_t b) const { return count.data() + b * batch; }
};

// Which weights of a query and a block of keys are kept, 64 lanes; all are without dropout.
struct Kept {
  const Dropping& dropping;
  int64_t stream, key_blocks;
  Drop drop;

  Kept(const Dropping& dropping_, int64_t stream_, int64_t keys)
      : dropping(dropping_), stream(stream_), key_blocks((keys + kBlockKeys - 1) / kBlockKeys),
        drop(dropping_.probability) {}

  // Set x[v] to 0 where it is dropped, and divide the others by the probability that they are not.
  void apply(int64_t query, int64_t first_key, __m512 (&x)[kBlockVectors]) const {
    if (dropping.probability == 0.0f) return;
    __m512i numbers[kBlockVectors];
    philox(dropping.seed, uint64_t(stream), uint32_t(query * key_blocks + first_key / kBlockKeys),
           numbers);
    for (int v = 0; v < kBlockVectors; ++v) x[v] = drop.apply(x[v], numbers[v]);
  }
};

// What a row of weights is computed from: the bias of its keys, and how many of the block it sees.
struct Seen {
  const float* bias;
  int64_t count;

  Seen(const Attending& a, const int64_t* reach, int64_t b, int64_t query, int64_t first_key)
      : bias(a.bias == nullptr ? nullptr
                               : a.bias + b * a.bias_batch + query * a.bias_row + first_key),
        count(reach[query] - first_key) {}

  // Of vector v, the keys that are seen: logits of others may never have been computed.
  __mmask16 mask(int v) const { return mask_of(std::max<int64_t>(0, count - v * kLanes)); }

  // The logits of a block of keys, -inf where hidden.
  void load(const float* logits, __m512 (&x)[kBlockVectors]) const {
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) {
      x[v] = _mm512_mask_loadu_ps(_mm512_set1_ps(-kInfinity), mask(v), logits + v * kLanes);
      if (bias != nullptr)
        x[v] = _mm512_add_ps(x[v], _mm512_maskz_loadu_ps(mask(v), bias + v * kLanes));
    }
  }
};

// The largest of some counts, and at most a block of keys, from `first_key` on.
inline int64_t extent_of(const int64_t* reach, int64_t rows, int64_t first_key) {
  const int64_t longest = *std::max_element(reach, reach + rows);
  return std::clamp<int64_t>(longest - first_key, 0, kBlockKeys);
}

// The rows of a block, at most 64 from `first` on, of keys or values (K, d) as columns: (d, 64).
inline void pack_columns(const Matrix& rows, int64_t first, int64_t count, int64_t size,
                         float* panel) {
  pack({rows.data + first * rows.row, 1, rows.row}, size, std::min(kBlockKeys, count - first),
       panel);
}

// What a block of queries of one row and head has summed up so far.
struct Running {
  float *sums, *highest, *mixed;  // (queries, 16), (queries), (queries, padded)
  int64_t padded;

  void begin(int64_t rows) {
    std::fill(sums, sums + rows * kLanes, 0.0f);
    std::fill(highest, highest + rows, -kInfinity);
    std::fill(mixed, mixed + rows * padded, 0.0f);
  }

  // Make weights of the logits of row i: powers of e of their distance to the highest so far.
  void weigh(int64_t i, const Seen& seen, float* logits, const Kept& kept, int64_t query,
             int64_t first_key) {
    __m512 x[kBlockVectors];
    seen.load(logits, x);
    const float top = _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3])));
    if (top > highest[i]) raise(i, top);
    const __m512 base = _mm512_set1_ps(highest[i] == -kInfinity ? 0.0f : highest[i]);
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) x[v] = exp16(_mm512_sub_ps(x[v], base));
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
    _mm512_storeu_ps(sums + i * kLanes, _mm512_add_ps(_mm512_loadu_ps(sums + i * kLanes), sum));
    kept.apply(query, first_key, x);
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) _mm512_storeu_ps(logits + v * kLanes, x[v]);
  }

  void raise(int64_t i, float top) {
    const __m512 factor = exp16(_mm512_set1_ps(highest[i] - top));
    highest[i] = top;
    _mm512_storeu_ps(sums + i * kLanes, _mm512_mul_ps(_mm512_loadu_ps(sums + i * kLanes), factor));
    for (int64_t c = 0; c < padded; c += kLanes) {
      float* part = mixed + i * padded + c;
      _mm512_storeu_ps(part, _mm512_mul_ps(_mm512_loadu_ps(part), factor));
    }
  }

  // Write the result of row i (size) and return the logarithm of its sum; inf if it saw no key.
  float end(int64_t i, int64_t size, float* target) const {
    const float sum = _mm512_reduce_add_ps(_mm512_loadu_ps(sums + i * kLanes));
    const bool hidden = sum == 0.0f;
    copy_back(mixed + i * padded, 1, size, hidden ? 0.0f : 1.0f / sum, target, size);
    return hidden ? kInfinity : highest[i] + std::log(sum);
  }
};

// The result (B, H, T, d), and the logarithms of sums (B, H, T).
inline std::tuple<Tensor, Tensor> long_attention_forward(const Tensor& q, const Tensor& k,
                                                         const Tensor& v,
                                                         const std::optional<Tensor>& bias,
                                                         const Dropping& dropping, double scale,
                                                         bool causal) {
  const Attending a(q, k, v, bias, {}, scale, causal);
  Tensor out = empty_heads(a.batch, a.heads, a.queries, a.value_size, q);
  Tensor kept_sums = at::empty({a.batch, a.heads, a.queries}, q.options());
  const Heads from_q(q), from_k(k), from_v(v), to_out(out);
  float *target = write(out), *logarithms = write(kept_sums);
  const Reach reach_of(a);
  const int64_t all_keys = round_up(a.keys, kBlockKeys), padded = round_up(a.value_size, kLanes),
                asked_row = round_up(a.size, kLanes);
  const int64_t blocks = (a.queries + kBlockQueries - 1) / kBlockQueries;
  at::parallel_for(0, a.batch * a.heads * blocks, 1, [&](int64_t from, int64_t to) {
    Arena arena(all_keys * (a.size + padded) + kBlockQueries * (asked_row + padded + 2 * kLanes) +
                kTileRows * kBlockKeys);
    float *panels = arena.take(all_keys * a.size), *values = arena.take(all_keys * padded),
          *asked = arena.take(kBlockQueries * asked_row),
          *weights = arena.take(kTileRows * kBlockKeys);
    Running running{arena.take(kBlockQueries * kLanes), arena.take(kBlockQueries),
                    arena.take(kBlockQueries * padded), padded};
    int64_t packed = -1;  // number of the row and key head whose keys and values are there
    for (int64_t item = from; item < to; ++item) {
      const int64_t start = item % blocks * kBlockQueries, h = item / blocks % a.heads,
                    b = item / blocks / a.heads;
      const int64_t rows = std::min(kBlockQueries, a.queries - start);
      const int64_t wanted = b * a.heads + h / a.groups;
      if (wanted != packed) {
        const Matrix key = from_k.at(b, h / a.groups);
        for (int64_t j = 0; j < a.keys; j += kBlockKeys)
          pack_columns(key, j, a.keys, a.size, panels + j * a.size);
        copy_rows(from_v.at(b, h / a.groups), a.keys, a.value_size, 1.0f, values);
        packed = wanted;
      }
      const Matrix mine = from_q.at(b, h);
      copy_rows({mine.data + start * mine.row, mine.row, 1}, rows, a.size, a.scale, asked);
      running.begin(rows);
      const int64_t* reach = reach_of.of(b);
      const Kept kept(dropping, b * a.heads + h, a.keys);
      const int64_t last = *std::max_element(reach + start, reach + start + rows);
      for (int64_t j = 0; j < last; j += kBlockKeys)
        for (int64_t i = 0; i < rows; i += kTileRows) {
          const int64_t here = std::min(kTileRows, rows - i);
          const int64_t extent = extent_of(reach + start + i, here, j);
          if (extent == 0) continue;
          multiply_tile(here, extent, a.size, {asked + i * asked_row, asked_row, 1},
                        panels + j * a.size, kBlockKeys, weights, kBlockKeys, false);
          for (int64_t t = i; t < i + here; ++t)
            running.weigh(t, {a, reach, b, start + t, j}, weights + (t - i) * kBlockKeys, kept,
                          start + t, j);
          multiply_tile(here, padded, extent, {weights, kBlockKeys, 1}, values + j * padded,
                        padded, running.mixed + i * padded, padded, true);
        }
      for (int64_t i = 0; i < rows; ++i)
        logarithms[(b * a.heads + h) * a.queries + start + i] =
            running.end(i, a.value_size,
                        target + b * to_out.batch + h * to_out.head + (start + i) * to_out.row);
    }
  });
  return {out, kept_sums};
}

}  // namespace moeut

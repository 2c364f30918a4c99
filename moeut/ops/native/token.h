// Attention of one query a row, as each token that is decoded asks: what it costs is to read keys
// and values, which are read in place, once, row after row.
//
// Every number is that of attention.h, to the bit: logits are chains of fused multiply-adds over
// channels, mixes of values chains over keys, in blocks of kDepth.
#pragma once

#include "attention.h"

namespace moeut {

constexpr int64_t kScores = 1 << 17;  // by distance, of some rows at a time: 512 KiB stay in L2

constexpr int64_t kAhead = 2;  // heads from a key or value that is read to one that is asked for

// Whether token_attention computes what attention_forward does.
inline bool is_token(const Tensor& q, const Dropping& dropping) {
  return q.size(2) == 1 && q.size(3) <= kDepth && dropping.probability == 0.0f;
}

// logits[j] = q . k_j of `count` keys, 16 at a time. What lies `ahead` floats behind is asked for.
inline void token_logits(const float* q, const Matrix& keys, int64_t count, int64_t size,
                         int64_t ahead, float* logits) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t here = std::min(kLanes, count - j);
    const float* source = keys.data + j * keys.row;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < size; c += kLanes) {
      for (int64_t i = 0; i < here; ++i) ask_for(source + i * keys.row + c + ahead);
      __m512 column[kLanes];
      columns_of(source + c, keys.row, here, mask_of(size - c), column);
      if (size - c >= kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          sum = _mm512_fmadd_ps(_mm512_set1_ps(q[c + i]), column[i], sum);
      } else {
        for (int64_t i = 0; i < size - c; ++i)
          sum = _mm512_fmadd_ps(_mm512_set1_ps(q[c + i]), column[i], sum);
      }
    }
    _mm512_mask_storeu_ps(logits + j, mask_of(here), sum);
  }
}

// target = sum over keys j of weights[j] v_j, kVectors x 16 channels of it, the last masked.
template <int kVectors>
inline void token_mix(const float* weights, const float* values, int64_t row, int64_t count,
                      __mmask16 last, int64_t ahead, float* target) {
  __m512 total[kVectors];
  for (int64_t first = 0; first < count; first += kDepth) {
    __m512 sum[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] = _mm512_setzero_ps();
    const int64_t end = std::min(first + kDepth, count);
    for (int64_t j = first; j < end; ++j) {
      const __m512 weight = _mm512_set1_ps(weights[j]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const float* source = values + j * row + v * kLanes;
        ask_for(source + ahead);
        sum[v] = _mm512_fmadd_ps(
            weight, _mm512_maskz_loadu_ps(v + 1 < kVectors ? __mmask16(0xffff) : last, source),
            sum[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      total[v] = first == 0 ? sum[v] : _mm512_add_ps(total[v], sum[v]);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    _mm512_mask_storeu_ps(target + v * kLanes, v + 1 < kVectors ? __mmask16(0xffff) : last,
                          total[v]);
}

inline void token_mix(const float* weights, const Matrix& values, int64_t count, int64_t size,
                      int64_t ahead, float* target) {
  for (int64_t c = 0; c < size; c += kTileColumns) {
    const int64_t columns = std::min(kTileColumns, size - c);
    const int64_t vectors = (columns + kLanes - 1) / kLanes;
    const __mmask16 last = mask_of(columns - (vectors - 1) * kLanes);
    const float* source = values.data + c;
    switch (vectors) {
      case 1: token_mix<1>(weights, source, values.row, count, last, ahead, target + c); break;
      case 2: token_mix<2>(weights, source, values.row, count, last, ahead, target + c); break;
      case 3: token_mix<3>(weights, source, values.row, count, last, ahead, target + c); break;
      default: token_mix<4>(weights, source, values.row, count, last, ahead, target + c);
    }
  }
}

// The result (B, H, 1, d) of queries (B, H, 1, d); of relative positions, what a table (W, H, d)
// makes of the queries of many rows is one product.
inline Tensor token_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                              const std::optional<Tensor>& bias, const Relative& relative,
                              double scale, bool causal) {
  const Attending a(q, k, v, bias, relative, scale, causal);
  Tensor out = empty_heads(a.batch, a.heads, 1, a.value_size, q);
  const Heads from_q(q), from_k(k), from_v(v), to_out(out);
  float* target = write(out);
  const int64_t cells = a.heads * a.keys, block = std::max<int64_t>(1, kScores / cells);
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, cells * a.size));
  at::parallel_for(0, a.batch, grain, [&](int64_t from, int64_t to) {
    float* scores = a.r == nullptr ? nullptr : scratch(1, std::min(block, to - from) * cells);
    for (int64_t start = from; start < to; start += block) {
      const int64_t rows = std::min(block, to - start);
      float* shifted = scratch(0, std::max(rows * a.size, a.size + a.keys));
      for (int64_t h = 0; a.r != nullptr && h < a.heads; ++h) {
        for (int64_t i = 0; i < rows; ++i)
          add_to_rows(from_q.at(start + i, h), a.w + h * a.size, 1, a.size, shifted + i * a.size);
        multiply(rows, a.keys, a.size, {shifted, a.size, 1}, a.table(h).transposed(),
                 scores + h * a.keys, cells);
      }
      float* weights = shifted + a.size;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t b = start + i;
        for (int64_t h = 0; h < a.heads; ++h) {
          const Matrix mine = from_q.at(b, h);
          if (a.u != nullptr) add_to_rows(mine, a.u + h * a.size, 1, a.size, shifted);
          const Matrix key = from_k.at(b, h / a.groups), value = from_v.at(b, h / a.groups);
          const int64_t next = (h + kAhead) / a.heads, other = (h + kAhead) % a.heads / a.groups;
          token_logits(a.u == nullptr ? mine.data : shifted, key, a.keys, a.size,
                       from_k.at(b + next, other).data - key.data, weights);
          if (a.r != nullptr) add_row(weights, scores + i * cells + h * a.keys, a.keys);
          weigh_row(a, b, 0, weights);
          token_mix(weights, value, a.keys, a.value_size,
                    from_v.at(b + next, other).data - value.data,
                    target + b * to_out.batch + h * to_out.head);
        }
      }
    }
  });
  return out;
}

}  // namespace moeut

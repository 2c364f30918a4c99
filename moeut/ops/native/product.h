// Multiply float32 matrices by AVX-512: C = A B, or C += A B, with what follows a product done on
// the way out (bias, ReLU, the ReLU's derivative).
//
// Every element of C is one chain of fused multiply-adds in the order of k, cut into the same
// blocks whatever the shape of the rest: its bits depend neither on the other rows of A, nor on the
// number of threads.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace moeut {

// A matrix by its strides: element (i, j) is at data[i * row + j * column], or at
// data[at[i] + j * column] where its rows lie anywhere.
struct Matrix {
  const float* data;
  int64_t row;
  int64_t column;
  const int64_t* at = nullptr;

  Matrix transposed() const { return {data, column, row}; }  // of strides alone

  // From element (i, j) on.
  Matrix from(int64_t i, int64_t j) const {
    if (at != nullptr) return {data + j * column, row, column, at + i};
    return {data + i * row + j * column, row, column};
  }
  const float* operator[](int64_t i) const { return data + (at == nullptr ? i * row : at[i]); }
};

// What happens to C besides the product.
struct Finish {
  bool accumulate = false;          // C is added to, and not overwritten
  const float* bias = nullptr;      // (N,) added
  bool relu = false;                // negative elements become 0
  const float* positive = nullptr;  // laid out as C: where it is at most 0, C becomes 0
  const float* scale = nullptr;     // (M,) factor of each row, before the above
};

constexpr int64_t kLanes = 16;

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

inline __mmask16 mask_of(int64_t count) {
  return count >= kLanes ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

constexpr int64_t kTileRows = 6;     // 6 x 4 accumulators, 4 registers of B, 1 of A: 29 of 32
constexpr int64_t kTileVectors = 4;
constexpr int64_t kTileColumns = kLanes * kTileVectors;
constexpr int64_t kWideRows = 3;
constexpr int64_t kWideColumns = 8 * kLanes;
constexpr int64_t kDepth = 128;      // rows of B that are packed at a time: 32 KiB stay in L1
constexpr int64_t kFewRows = 24;  // of A, below which packing Bᵀ costs more than its use (few.h)
constexpr int64_t kAskedRows = 16;     // of a B that is not packed, asked for ahead
constexpr int64_t kRowsAhead = 8;      // from a row that lies anywhere to the one asked for
constexpr int64_t kMinPackedRows = 48;  // below, packing a B whose rows are contiguous does not pay

// Memory that a tile asks for while it computes, a cache line a step of k.
struct Ahead {
  const float* line;
  int64_t step;
};

inline void ask_for(const float* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
}

// One tile of C, kRows x (16 * kVectors), over `depth` steps of k. `last` masks the last vector.
// kAsks: the rows of B are read for the first time, and asked for kAskedRows ahead.
template <int kRows, int kVectors, bool kAsks>
inline void tile(
    int64_t depth, const Matrix& a, const float* b, int64_t b_row, float* c, int64_t c_row,
    __mmask16 last, bool is_first, bool is_last, Ahead ahead, const Finish& finish) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_setzero_ps();
  const float* row[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) row[i] = a[i];
  int64_t offset = 0;
  for (int64_t k = 0; k < depth; ++k, offset += a.column, b += b_row) {
    __m512 right[kVectors];
    if constexpr (kAsks) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) ask_for(b + kAskedRows * b_row + v * kLanes);
    }
    ask_for(ahead.line);
    ahead.line += ahead.step;
#pragma GCC unroll 8
    for (int v = 0; v + 1 < kVectors; ++v) right[v] = _mm512_loadu_ps(b + v * kLanes);
    right[kVectors - 1] = _mm512_maskz_loadu_ps(last, b + (kVectors - 1) * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512 left = _mm512_set1_ps(row[i][offset]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_fmadd_ps(left, right[v], sum[i][v]);
    }
  }
  const __m512 zero = _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __mmask16 mask = v + 1 < kVectors ? __mmask16(0xffff) : last;
      float* out = c + i * c_row + v * kLanes;
      __m512 value = sum[i][v];
      if (!is_first || finish.accumulate)
        value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), value);
      if (is_last) {
        if (finish.scale != nullptr)
          value = _mm512_mul_ps(value, _mm512_set1_ps(finish.scale[i]));
        if (finish.bias != nullptr)
          value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, finish.bias + v * kLanes));
        if (finish.relu) value = _mm512_max_ps(zero, value);  // in this order a NaN stays one
        if (finish.positive != nullptr) {
          const __m512 sign =
              _mm512_maskz_loadu_ps(mask, finish.positive + i * c_row + v * kLanes);
          value = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(sign, zero, _CMP_NLE_UQ), value);
        }
      }
      _mm512_mask_storeu_ps(out, mask, value);
    }
  }
}

using Tile = void (*)(
    int64_t, const Matrix&, const float*, int64_t, float*, int64_t, __mmask16, bool, bool,
    Ahead, const Finish&);

template <int kVectors, bool kAsks>
inline Tile tile_of_rows(int64_t rows) {
  switch (rows) {
    case 1: return tile<1, kVectors, kAsks>;
    case 2: return tile<2, kVectors, kAsks>;
    case 3: return tile<3, kVectors, kAsks>;
    case 4: return tile<4, kVectors, kAsks>;
    case 5: return tile<5, kVectors, kAsks>;
    default: return tile<6, kVectors, kAsks>;
  }
}

// Of few rows, whose product is bound by reading B, a tile takes more of each row of B.
template <int kVectors>
inline Tile wide_tile(int64_t rows) {
  switch (rows) {
    case 1: return tile<1, kVectors, true>;
    case 2: return tile<2, kVectors, true>;
    default: return tile<3, kVectors, true>;
  }
}

template <bool kAsks>
inline Tile narrow_tile(int64_t rows, int64_t vectors) {
  switch (vectors) {
    case 1: return tile_of_rows<1, kAsks>(rows);
    case 2: return tile_of_rows<2, kAsks>(rows);
    case 3: return tile_of_rows<3, kAsks>(rows);
    default: return tile_of_rows<4, kAsks>(rows);
  }
}

inline Tile choose_tile(int64_t rows, int64_t vectors, bool asks) {
  switch (vectors) {
    case 5: return wide_tile<5>(rows);
    case 6: return wide_tile<6>(rows);
    case 7: return wide_tile<7>(rows);
    case 8: return wide_tile<8>(rows);
    default: return asks ? narrow_tile<true>(rows, vectors) : narrow_tile<false>(rows, vectors);
  }
}

// The columns of 16 rows of up to 16 floats, of which `count` are read and the others are 0.
inline void columns_of(const float* source, int64_t stride, int64_t count, __mmask16 width,
                       __m512 (&column)[16]) {
  __m512 r[16];
  __m512(&t)[16] = column;
  for (int j = 0; j < 16; ++j)
    r[j] = j < count ? _mm512_maskz_loadu_ps(width, source + j * stride) : _mm512_setzero_ps();
  for (int j = 0; j < 8; ++j) {
    t[2 * j] = _mm512_unpacklo_ps(r[2 * j], r[2 * j + 1]);
    t[2 * j + 1] = _mm512_unpackhi_ps(r[2 * j], r[2 * j + 1]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512d* d = reinterpret_cast<const __m512d*>(t + 4 * j);
    r[4 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(d[0], d[2]));
    r[4 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d[0], d[2]));
    r[4 * j + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d[1], d[3]));
    r[4 * j + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d[1], d[3]));
  }
  // r[4 * g + c] holds, in its quarter q, column 4 * q + c of source rows 4 * g .. 4 * g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);     // quarters 0 2 of g = 0, 1
    const __m512 high = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);    // quarters 1 3
    const __m512 low2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    const __m512 high2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_f32x4(low, low2, 0x88);
    t[8 + c] = _mm512_shuffle_f32x4(low, low2, 0xdd);
    t[4 + c] = _mm512_shuffle_f32x4(high, high2, 0x88);
    t[12 + c] = _mm512_shuffle_f32x4(high, high2, 0xdd);
  }
}

// Transpose 16 x 16: source row j (of `count`, the others are 0) becomes column j.
inline void transpose(const float* source, int64_t stride, int64_t count, __mmask16 width,
                      float* target, int64_t target_row, int64_t rows) {
  __m512 column[16];
  columns_of(source, stride, count, width, column);
  for (int64_t i = 0; i < rows; ++i) _mm512_storeu_ps(target + i * target_row, column[i]);
}

// Ask for so many floats of rows that lie anywhere, which no processor foresees.
inline void ask_for_rows(const Matrix& a, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < width; k += kLanes) ask_for(a[i] + k);
}

// Copy (depth, columns) of B to a panel with rows of kTileColumns floats, padded with zeros.
inline void pack(const Matrix& b, int64_t depth, int64_t columns, float* panel) {
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  if (b.at != nullptr) {
    for (int64_t k = 0; k < depth; ++k) {
      ask_for_rows(b.from(std::min(k + kRowsAhead, depth - 1), 0), 1, columns);
      for (int64_t v = 0; v < vectors; ++v)
        _mm512_storeu_ps(panel + k * kTileColumns + v * kLanes,
                         _mm512_maskz_loadu_ps(mask_of(columns - v * kLanes), b[k] + v * kLanes));
    }
    return;
  }
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t width = std::min(kLanes, columns - v * kLanes);
    const __mmask16 mask = mask_of(width);
    float* target = panel + v * kLanes;
    if (b.column == 1) {
      for (int64_t k = 0; k < depth; ++k)
        _mm512_storeu_ps(target + k * kTileColumns,
                         _mm512_maskz_loadu_ps(mask, b.data + k * b.row + v * kLanes));
    } else if (b.row == 1) {
      const float* source = b.data + v * kLanes * b.column;
      for (int64_t k = 0; k < depth; k += kLanes) {
        const int64_t steps = std::min(kLanes, depth - k);
        transpose(source + k, b.column, width, mask_of(steps),
                  target + k * kTileColumns, kTileColumns, steps);
      }
    } else {
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = 0; j < kLanes; ++j)
          target[k * kTileColumns + j] =
              j < width ? b.data[k * b.row + (v * kLanes + j) * b.column] : 0.0f;
    }
  }
}

// What tile number `i` of a part of B asks for of the part that is read next: one line of each of
// its rows, or of its columns where those are contiguous. Without a next part, nothing new.
inline Ahead ahead_of(int64_t i, const Matrix& b, const float* part, const float* next) {
  const bool by_row = b.column == 1;
  const int64_t lines = (by_row ? kTileColumns : kDepth) / kLanes;
  if (next == nullptr || i >= lines) return {part, 0};
  return {next + i * kLanes, by_row ? b.row : b.column};
}

// What a product's finish does to the part of C that begins at row i, column j.
inline Finish finish_of(const Finish& finish, int64_t i, int64_t j, int64_t c_row) {
  Finish here = finish;
  if (here.bias != nullptr) here.bias += j;
  if (here.positive != nullptr) here.positive += i * c_row + j;
  if (here.scale != nullptr) here.scale += i;
  return here;
}

// Memory of this thread for a packed part of B.
inline float* panel_of_thread() {
  alignas(64) static thread_local float panel[kDepth * kTileColumns];
  return panel;
}

inline bool is_packed(int64_t M, const Matrix& b) {
  return b.column != 1 || b.at != nullptr || M >= kMinPackedRows;
}

// C (M, N), whose rows are `c_row` floats apart, = A (M, K) B (K, N); one thread.
inline void multiply(int64_t M, int64_t N, int64_t K, Matrix a, Matrix b, float* c, int64_t c_row,
                     const Finish& finish = {}) {
  float* const panel = panel_of_thread();
  const bool packs = is_packed(M, b);
  const int64_t stride = packs || M > kWideRows ? kTileColumns : kWideColumns;
  for (int64_t j = 0; j < N; j += stride) {
    const int64_t columns = std::min(stride, N - j);
    const int64_t vectors = (columns + kLanes - 1) / kLanes;
    const __mmask16 last = mask_of(columns - (vectors - 1) * kLanes);
    int64_t k = 0;
    do {  // once even if K is 0
      const int64_t depth = std::min(kDepth, K - k);
      const Matrix part = b.from(k, j);
      if (packs) pack(part, depth, columns, panel);
      const float* next = b.at != nullptr  ? nullptr
                          : k + kDepth < K ? part.data + kDepth * b.row
                          : j + stride < N ? b.data + (j + stride) * b.column
                                           : nullptr;
      const float* right = packs ? panel : part.data;
      const int64_t right_row = packs ? kTileColumns : b.row;
      for (int64_t i = 0; i < M; i += kTileRows) {
        if (a.at != nullptr && j == 0 && i + kTileRows < M)
          ask_for_rows(a.from(i + kTileRows, k), std::min(kTileRows, M - i - kTileRows), depth);
        choose_tile(M - i, vectors, !packs && i == 0)(
            depth, a.from(i, k), right, right_row, c + i * c_row + j, c_row, last, k == 0,
            k + depth == K, ahead_of(i / kTileRows, b, part.data, next),
            finish_of(finish, i, j, c_row));
      }
      k += kDepth;
    } while (k < K);
  }
}

// The same, which calls done(first row, rows, those rows) for a few rows at a time, as soon as they
// are whole. C is memory for M rows, of which those that are done may be overwritten.
template <typename Done>
inline void multiply_rows(int64_t M, int64_t N, int64_t K, Matrix a, Matrix b, float* c,
                          int64_t c_row, const Finish& finish, const Done& done) {
  const int64_t strips = (N + kTileColumns - 1) / kTileColumns;
  if (!is_packed(M, b) || K * strips > kDepth) {  // B is more than what is packed at a time
    multiply(M, N, K, a, b, c, c_row, finish);
    for (int64_t i = 0; i < M; i += kTileRows)
      done(i, std::min(kTileRows, M - i), c + i * c_row);
    return;
  }
  float* const panel = panel_of_thread();
  for (int64_t j = 0; j < N; j += kTileColumns)
    pack(b.from(0, j), K, std::min(kTileColumns, N - j), panel + j * K);
  for (int64_t i = 0; i < M; i += kTileRows) {
    const Matrix left = a.from(i, 0);
    if (a.at != nullptr && i + kTileRows < M)
      ask_for_rows(a.from(i + kTileRows, 0), std::min(kTileRows, M - i - kTileRows), K);
    for (int64_t j = 0; j < N; j += kTileColumns) {
      const int64_t columns = std::min(kTileColumns, N - j);
      const int64_t vectors = (columns + kLanes - 1) / kLanes;
      choose_tile(M - i, vectors, false)(
          K, left, panel + j * K, kTileColumns, c + j, c_row,
          mask_of(columns - (vectors - 1) * kLanes), true, true, Ahead{panel, 0},
          finish_of(finish, i, j, c_row));
    }
    done(i, std::min(kTileRows, M - i), c);
  }
}

}  // namespace moeut

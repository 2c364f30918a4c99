// Products of a few rows, C += A W, that read the rows of W once, one after the other: what such a
// product costs is to read W, and in this order a processor reads as fast as memory gives.
//
// Every element of C is one chain of fused multiply-adds in the order of k, from what C was: its
// bits depend neither on other rows nor on threads. Where a column of A is 0 in all rows, as behind
// a ReLU, the row of W that it meets is not read: adding 0 times a finite number changes nothing.
// A W all of whose numbers bfloat16 holds is read from a copy in it: the same bits, half the memory.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "softmax.h"
#include "tensors.h"

namespace moeut {

constexpr int kSteps = 64;        // rows of W that are added at a time, at most
constexpr int64_t kChunk = 8192;  // numbers of them
constexpr int64_t kStrip = 256;   // columns of a packed W that lie together
constexpr int64_t kMinSkipped = 8;  // one of so many columns of A has to be 0 for a list to pay

constexpr int64_t kHugePage = 1 << 21;
constexpr int64_t kLine = 64;  // bytes that a processor reads at a time

using Half = at::BFloat16;  // the upper half of a float's bits

inline __m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }

inline __m512 load(const Half* from, __mmask16 mask) {
  const __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// (count, width) floats, with zeros between the width and the stride.
struct Rows {
  std::vector<float> data;
  int64_t count = 0, width = 0, stride = 0;

  void shape(int64_t count_, int64_t width_) {
    if (count == count_ && width == width_) return;
    count = count_, width = width_, stride = round_up(width_, kLanes);
    data.assign(count * stride, 0.0f);
  }
  float* operator[](int64_t i) { return data.data() + i * stride; }
  const float* operator[](int64_t i) const { return data.data() + i * stride; }
};

// The rows of A: value i of a row meets row `steps[i]` of W, or row i without a list.
struct Left {
  const float* values;
  int64_t row, rows, count;
  const int32_t* steps = nullptr;

  int64_t step(int64_t i) const {
    i = std::min(i, count - 1);
    return steps == nullptr ? i : steps[i];
  }
};

// What a Left with a list is made of.
struct Nonzero {
  std::vector<float> values;
  std::vector<int32_t> steps;

  // `left` without the columns that are 0 in all rows, or as it is if they are few.
  Left of(const Left& left) {
    const int64_t padded = round_up(left.count, kLanes);
    steps.resize(padded + kLanes);
    values.resize(left.rows * padded + kLanes);
    const __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t found = 0;
    for (int64_t k = 0; k < left.count; k += kLanes) {
      __mmask16 some = 0;  // a NaN is not 0
      for (int64_t m = 0; m < left.rows; ++m)
        some |= _mm512_cmp_ps_mask(
            _mm512_maskz_loadu_ps(mask_of(left.count - k), left.values + m * left.row + k),
            _mm512_setzero_ps(), _CMP_NEQ_UQ);
      const __m512i numbers = _mm512_add_epi32(lanes, _mm512_set1_epi32(int(k)));
      _mm512_storeu_si512(steps.data() + found, _mm512_maskz_compress_epi32(some, numbers));
      for (int64_t m = 0; m < left.rows; ++m)
        _mm512_storeu_ps(
            values.data() + m * padded + found,
            _mm512_maskz_compress_ps(some, _mm512_loadu_ps(left.values + m * left.row + k)));
      found += _mm_popcnt_u32(some);
    }
    if (found + left.count / kMinSkipped > left.count) return left;
    return {values.data(), padded, left.rows, found, steps.data()};
  }
};

// What tiles read: `count` columns of A from `a`, and the rows of W that they meet. Meanwhile the
// rows that are read next are asked for, in the order of memory, and no nearer than L2: an L1 waits
// for few lines at a time, and asking for one more stops the processor. `Number` is what W is
// read as: float, or Half.
template <typename Number>
struct Steps {
  static constexpr int64_t kPerLine = kLine / sizeof(Number);
  int64_t count;
  const float* a;
  int64_t a_row;
  const Number *here[kSteps], *next[kSteps];
  int64_t width;              // of a row, in lines
  int64_t row = 0, line = 0;  // asked for next

  void ask() {
    _mm_prefetch(reinterpret_cast<const char*>(next[row] + line * kPerLine), _MM_HINT_T1);
    if (++line == width) line = 0, ++row;
  }
};

// A tile of C, kRows x (16 * kVectors), += the steps. `last` masks the last vector.
template <int kRows, int kVectors, bool kAsks, typename Number>
inline void add_tile(Steps<Number>& steps, int64_t first_row, int64_t column, float* c,
                     int64_t c_row, __mmask16 last) {
  constexpr int kVectorsPerLine = Steps<Number>::kPerLine / kLanes;
  const float* a = steps.a + first_row * steps.a_row;
  c += first_row * c_row + column;
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[m][v] = _mm512_maskz_loadu_ps(v + 1 < kVectors ? __mmask16(0xffff) : last,
                                        c + m * c_row + v * kLanes);
  for (int64_t s = 0; s < steps.count; ++s) {
    __m512 right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (kAsks && v % kVectorsPerLine == 0) steps.ask();
      right[v] = load(steps.here[s] + column + v * kLanes,
                      v + 1 < kVectors ? __mmask16(0xffff) : last);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512 left = _mm512_set1_ps(a[m * steps.a_row + s]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = _mm512_fmadd_ps(left, right[v], sum[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      _mm512_mask_storeu_ps(c + m * c_row + v * kLanes,
                            v + 1 < kVectors ? __mmask16(0xffff) : last, sum[m][v]);
}

template <typename Number>
using AddTile = void (*)(Steps<Number>&, int64_t, int64_t, float*, int64_t, __mmask16);

template <int kVectors, bool kAsks, typename Number>
inline AddTile<Number> add_tile_of(int64_t rows) {
  switch (rows) {
    case 1: return add_tile<1, kVectors, kAsks, Number>;
    case 2: return add_tile<2, kVectors, kAsks, Number>;
    case 3: return add_tile<3, kVectors, kAsks, Number>;
    case 4: return add_tile<4, kVectors, kAsks, Number>;
    case 5: return add_tile<5, kVectors, kAsks, Number>;
    default: return add_tile<6, kVectors, kAsks, Number>;
  }
}

template <bool kAsks, typename Number>
inline AddTile<Number> add_tile_of(int64_t rows, int64_t vectors) {
  switch (vectors) {
    case 1: return add_tile_of<1, kAsks, Number>(rows);
    case 2: return add_tile_of<2, kAsks, Number>(rows);
    case 3: return add_tile_of<3, kAsks, Number>(rows);
    default: return add_tile_of<4, kAsks, Number>(rows);
  }
}

// C (rows, columns) += the steps, tile by tile.
template <typename Number>
inline void add_steps(Steps<Number>& steps, int64_t rows, int64_t columns, float* c,
                      int64_t c_row) {
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    const int64_t width = std::min(kTileColumns, columns - column);
    const int64_t vectors = (width + kLanes - 1) / kLanes;
    const __mmask16 last = mask_of(width - (vectors - 1) * kLanes);
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const AddTile<Number> tile = m == 0 ? add_tile_of<true, Number>(rows, vectors)
                                          : add_tile_of<false, Number>(rows - m, vectors);
      tile(steps, m, column, c, c_row, last);
    }
  }
}

// C (M, N) += A W, of W (K, N) whose rows are `w_row` numbers apart; one thread. What lies at
// `after` is asked for at the end: the weight that is read next.
template <typename Number>
inline void add_rows(const Left& left, const Number* w, int64_t w_row, int64_t columns, float* c,
                     int64_t c_row, const Number* after) {
  Steps<Number> steps;
  steps.a_row = left.row, steps.width = (columns - 1) / Steps<Number>::kPerLine + 1;
  // These rows and the next stay in cache until they are read.
  const int64_t depth = std::clamp<int64_t>(kChunk / columns, 4, kSteps);
  for (int64_t i = 0; i < left.count; i += depth) {
    steps.count = std::min(depth, left.count - i);
    steps.a = left.values + i, steps.row = 0;
    for (int64_t s = 0; s < steps.count; ++s) {
      const int64_t further = i + depth + s;
      steps.here[s] = w + left.step(i + s) * w_row;
      steps.next[s] = further < left.count || after == nullptr
                          ? w + left.step(further) * w_row
                          : after + (further - left.count) * w_row;
    }
    add_steps(steps, left.rows, columns, c, c_row);
  }
}

// Put memory on huge pages as far as the system does that: a processor asks for what follows within
// a page alone, and a product of one row took 1.3 times as long from small ones.
inline void use_huge_pages(const float* start, int64_t count) {
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, since Linux 6.1: of pages in use, at once
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(start), kHugePage);
  const uintptr_t end = reinterpret_cast<uintptr_t>(start + count) / kHugePage * kHugePage;
  if (first >= end) return;
  void* const begin = reinterpret_cast<void*>(first);
  if (madvise(begin, end - first, MADV_HUGEPAGE) == 0) madvise(begin, end - first, kCollapse);
}

// Memory of its own, not yet in use and so put on huge pages as it is written.
template <typename Number>
inline std::shared_ptr<Number> huge_memory(int64_t count) {
  const int64_t bytes = round_up(std::max<int64_t>(1, count * sizeof(Number)), kHugePage);
  void* memory = std::aligned_alloc(kHugePage, bytes);
  TORCH_CHECK(memory != nullptr, "no memory for ", bytes, " bytes of packed weights");
  madvise(memory, bytes, MADV_HUGEPAGE);
  return {static_cast<Number*>(memory), [](Number* one) { std::free(one); }};
}

// Whether bfloat16 holds these floats as they are: the lower halves of their bits are 0.
inline bool fits_half(const float* from, int64_t count) {
  const __m512i lower = _mm512_set1_epi32(0xffff);
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512i bits = _mm512_maskz_loadu_epi32(mask_of(count - i), from + i);
    if (_mm512_test_epi32_mask(bits, lower) != 0) return false;
  }
  return true;
}

// A copy in bfloat16 of floats that it holds.
inline std::shared_ptr<Half> halved(const float* from, int64_t count) {
  std::shared_ptr<Half> copy = huge_memory<Half>(count);
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = mask_of(count - i);
    const __m512i bits = _mm512_srli_epi32(_mm512_maskz_loadu_epi32(mask, from + i), 16);
    _mm256_mask_storeu_epi16(copy.get() + i, mask, _mm512_cvtepi32_epi16(bits));
  }
  return copy;
}

// A dense layer whose weight (N, K) is packed: strips of up to kStrip columns of its transpose
// (K, N), one behind the other.
class Packed {
 public:
  Packed() = default;

  // Of weights with one number of inputs, and their biases, one below the other.
  Packed(const std::vector<Tensor>& weights, const std::vector<std::optional<Tensor>>& biases) {
    inputs_ = weights.at(0).size(1);
    for (const Tensor& one : weights) outputs_ += one.size(0);
    const Tensor whole = at::cat(weights).contiguous();
    const int64_t count = round_up(outputs_, kLanes) * inputs_;
    floats_ = huge_memory<float>(count);
    const float* source = read(whole);
    for (int64_t n = 0; n < outputs_; n += kLanes) {
      float* target = floats_.get() + place_of(n);
      const int64_t width = std::min(kLanes, outputs_ - n);
      for (int64_t k = 0; k < inputs_; k += kLanes) {
        const int64_t steps = std::min(kLanes, inputs_ - k);
        transpose(source + n * inputs_ + k, inputs_, width, mask_of(steps),
                  target + k * row_of(n), row_of(n), steps);
      }
    }
    if (fits_half(floats_.get(), count)) {
      halves_ = halved(floats_.get(), count);
      floats_.reset();
    }
    if (!biases.empty() && biases[0].has_value()) {
      std::vector<Tensor> some;
      for (const auto& one : biases) some.push_back(one.value());
      bias_ = at::cat(some).contiguous();
    }
  }

  int64_t outputs() const { return outputs_; }

  // C (M, N) += A Wᵀ, without the bias.
  void add(const Left& left, float* c, int64_t c_row) const {
    if (halves_ != nullptr)
      add(left, halves_.get(), c, c_row);
    else
      add(left, floats_.get(), c, c_row);
  }

  // C (M, N) = A Wᵀ + b.
  void set(const Left& left, float* c, int64_t c_row) const {
    for (int64_t m = 0; m < left.rows; ++m) {
      if (bias_.defined())
        std::copy(read(bias_), read(bias_) + outputs_, c + m * c_row);
      else
        std::fill(c + m * c_row, c + m * c_row + outputs_, 0.0f);
    }
    add(left, c, c_row);
  }

  // C (M, N) += A Wᵀ + b.
  void increase(const Left& left, float* c, int64_t c_row) const {
    for (int64_t m = 0; m < left.rows && bias_.defined(); ++m)
      add_row(c + m * c_row, read(bias_), outputs_);
    add(left, c, c_row);
  }

 private:
  // Threads share the columns.
  template <typename Number>
  void add(const Left& left, const Number* w, float* c, int64_t c_row) const {
    const int64_t vectors = (outputs_ + kLanes - 1) / kLanes;
    const int64_t cost = std::max<int64_t>(1, left.rows * left.count * kLanes);
    at::parallel_for(0, vectors, std::max<int64_t>(1, (1 << 19) / cost),
                     [&](int64_t from, int64_t to) {
                       const int64_t end = std::min(to * kLanes, outputs_);
                       for (int64_t n = from * kLanes; n < end;) {
                         const int64_t stop = std::min(end, n / kStrip * kStrip + kStrip);
                         const Number* after = stop < outputs_ ? w + place_of(stop) : nullptr;
                         add_rows(left, w + place_of(n), row_of(n), stop - n, c + n, c_row, after);
                         n = stop;
                       }
                     });
  }

  // Numbers from a row to the next of the strip that has column n.
  int64_t row_of(int64_t n) const {
    return std::min(kStrip, round_up(outputs_, kLanes) - n / kStrip * kStrip);
  }
  int64_t place_of(int64_t n) const { return n / kStrip * kStrip * inputs_ + n % kStrip; }

  int64_t inputs_ = 0, outputs_ = 0;
  std::shared_ptr<float> floats_;  // or
  std::shared_ptr<Half> halves_;
  Tensor bias_;
};

}  // namespace moeut

// The largest of a row of logits: the experts that one token and head chooses. A NaN is above all;
// of equal ones those are chosen that torch.topk chooses on a CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "softmax.h"

namespace moeut {

constexpr int32_t kTaken = std::numeric_limits<int32_t>::min();  // rank of an expert chosen before
constexpr int32_t kDropped = kTaken + 1;

// Ranks as logits order, 0 and -0 alike, a NaN above all; of lanes that are masked out, kTaken.
inline __m512i ranks_of(const float* logits, __mmask16 mask) {
  const __m512i highest = _mm512_set1_epi32(std::numeric_limits<int32_t>::max());
  const __m512 loaded = _mm512_maskz_loadu_ps(mask, logits);
  const __m512 x = _mm512_add_ps(loaded, _mm512_setzero_ps());  // -0 becomes 0
  const __m512i bits = _mm512_castps_si512(x);
  // Negative numbers grow as their bits fall.
  __m512i rank = _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi32(bits, 31), highest));
  rank = _mm512_mask_mov_epi32(rank, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), highest);
  return _mm512_mask_mov_epi32(_mm512_set1_epi32(kTaken), mask, rank);
}

// The experts of one token and head by rank, 16 to a vector.
class Ranks {
 public:
  explicit Ranks(int64_t experts)
      : experts_(experts), ranks_((experts + kLanes - 1) / kLanes) {}

  // Dropped experts are below all.
  void set(const float* logits, const bool* dropped) {
    for (size_t v = 0; v < ranks_.size(); ++v)
      ranks_[v] = ranks_of(logits + v * kLanes, mask_of(experts_ - int64_t(v) * kLanes));
    if (dropped == nullptr) return;
    for (int64_t e = 0; e < experts_; ++e)
      if (dropped[e]) set_rank(e, kDropped);
  }

  // The highest rank that is left.
  int32_t highest() const {
    __m512i best = ranks_[0];
    for (size_t v = 1; v < ranks_.size(); ++v) best = _mm512_max_epi32(best, ranks_[v]);
    return _mm512_reduce_max_epi32(best);
  }

  // Take the first expert of this rank, which there is; -1 if it is a dropped one.
  int64_t take(int32_t rank) {
    const __m512i wanted = _mm512_set1_epi32(rank);
    size_t v = 0;
    __mmask16 found = _mm512_cmpeq_epi32_mask(ranks_[0], wanted);
    while (found == 0) found = _mm512_cmpeq_epi32_mask(ranks_[++v], wanted);
    const int64_t expert = int64_t(v) * kLanes + __builtin_ctz(found);
    set_rank(expert, kTaken);
    return rank == kDropped ? -1 : expert;
  }

 private:
  // By a whole vector: what is stored by halves cannot be loaded at once.
  void set_rank(int64_t expert, int32_t rank) {
    __m512i& vector = ranks_[expert / kLanes];
    const __mmask16 lane = __mmask16(1u << (expert % kLanes));
    vector = _mm512_mask_mov_epi32(vector, lane, _mm512_set1_epi32(rank));
  }

  int64_t experts_;
  std::vector<__m512i> ranks_;
};

// The top_k of E logits as torch.topk chooses them on a CPU: of equal ones, those that the standard
// library's selection leaves in front.
inline void choose_tied(const float* logits, const bool* dropped, int64_t experts, int64_t top_k,
                        int64_t* chosen) {
  std::vector<std::pair<float, int64_t>> all;
  for (int64_t e = 0; e < experts; ++e) {
    const bool is_out = dropped != nullptr && dropped[e];
    all.emplace_back(is_out ? -std::numeric_limits<float>::infinity() : logits[e], e);
  }
  const auto is_before = [](const auto& a, const auto& b) {
    return (std::isnan(a.first) && !std::isnan(b.first)) || a.first > b.first;
  };
  if (top_k * 64 <= experts)
    std::partial_sort(all.begin(), all.begin() + top_k, all.end(), is_before);
  else
    std::nth_element(all.begin(), all.begin() + top_k - 1, all.end(), is_before);
  for (int64_t c = 0; c < top_k; ++c) chosen[c] = all[c].second;
}

// The numbers of the `top_k` largest of `experts` logits, the largest first but among equal ones.
class Largest {
 public:
  Largest(int64_t experts, int64_t top_k) : experts_(experts), ranks_(experts), chosen_(top_k) {}

  // -1 stands for one of those `dropped` (E), which are chosen when there are no others.
  const int64_t* of(const float* logits, const bool* dropped = nullptr) {
    ranks_.set(logits, dropped);
    int32_t rank = kDropped;
    for (int64_t& one : chosen_) {
      rank = ranks_.highest();
      one = ranks_.take(rank);
    }
    if (rank > kDropped && ranks_.highest() == rank)
      choose_tied(logits, dropped, experts_, int64_t(chosen_.size()), chosen_.data());
    return chosen_.data();
  }

 private:
  int64_t experts_;
  Ranks ranks_;
  std::vector<int64_t> chosen_;
};

constexpr int kMostKept = 13;  // ranks, with their experts, that registers hold

// The kKept highest of `experts` ranks in each lane, and whose they are; of equal ones the first.
template <int kKept>
inline void highest_of(const __m512i* ranks, int64_t experts, __m512i* best, __m512i* whose) {
  __m512i high[kKept], expert[kKept];
#pragma GCC unroll 13
  for (int j = 0; j < kKept; ++j)
    high[j] = _mm512_set1_epi32(kTaken), expert[j] = _mm512_setzero_si512();
  for (int64_t e = 0; e < experts; ++e) {
    __m512i rank = ranks[e], number = _mm512_set1_epi32(int32_t(e));
#pragma GCC unroll 13
    for (int j = 0; j < kKept; ++j) {  // what is not kept here goes on to the next place
      const __mmask16 above = _mm512_cmpgt_epi32_mask(rank, high[j]);
      const __m512i kept = _mm512_mask_mov_epi32(expert[j], above, number);
      number = _mm512_mask_mov_epi32(number, above, expert[j]);
      expert[j] = kept;
      const __m512i higher = _mm512_max_epi32(rank, high[j]);
      rank = _mm512_min_epi32(rank, high[j]);
      high[j] = higher;
    }
  }
#pragma GCC unroll 13
  for (int j = 0; j < kKept; ++j) best[j] = high[j], whose[j] = expert[j];
}

using HighestOf = void (*)(const __m512i*, int64_t, __m512i*, __m512i*);

template <int... kKept>
inline HighestOf highest_of(int64_t kept, std::integer_sequence<int, kKept...>) {
  static constexpr HighestOf all[] = {highest_of<kKept + 1>...};
  return all[kept - 1];
}

// The same as Largest, for up to 16 rows at a time, a row a lane.
class LargestOfRows {
 public:
  LargestOfRows(int64_t experts, int64_t top_k)
      : experts_(experts), top_k_(top_k), vectors_((experts + kLanes - 1) / kLanes),
        one_(experts, top_k), columns_(vectors_ * kLanes), chosen_(kLanes * top_k) {}

  // (count, top_k), the rows of logits and, unless that is null, of what is dropped given.
  const int64_t* of(const float* const* logits, const bool* const* dropped, int64_t count) {
    if (top_k_ >= kMostKept) {
      for (int64_t i = 0; i < count; ++i)
        std::copy_n(one_.of(logits[i], dropped == nullptr ? nullptr : dropped[i]), top_k_,
                    chosen_.begin() + i * top_k_);
      return chosen_.data();
    }
    set(logits, dropped, count);
    __m512i best[kMostKept], whose[kMostKept];
    highest_of(top_k_ + 1, std::make_integer_sequence<int, kMostKept>())(columns_.data(), experts_,
                                                                         best, whose);
    const int32_t* rank = reinterpret_cast<const int32_t*>(best);
    const int32_t* expert = reinterpret_cast<const int32_t*>(whose);
    for (int64_t i = 0; i < count; ++i) {
      int64_t* chosen = chosen_.data() + i * top_k_;
      for (int64_t c = 0; c < top_k_; ++c)
        chosen[c] = rank[c * kLanes + i] == kDropped ? -1 : expert[c * kLanes + i];
      const int32_t last = rank[(top_k_ - 1) * kLanes + i], next = rank[top_k_ * kLanes + i];
      if (last > kDropped && next == last)
        choose_tied(logits[i], dropped == nullptr ? nullptr : dropped[i], experts_, top_k_, chosen);
    }
    return chosen_.data();
  }

 private:
  // Rank the rows, and turn them so that each is a lane.
  void set(const float* const* logits, const bool* const* dropped, int64_t count) {
    for (int64_t v = 0; v < vectors_; ++v) {
      const __mmask16 mask = mask_of(experts_ - v * kLanes);
      alignas(64) int32_t ranks[kLanes * kLanes];
      for (int64_t i = 0; i < count; ++i) {
        __m512i rank = ranks_of(logits[i] + v * kLanes, mask);
        if (dropped != nullptr)
          for (int64_t e = v * kLanes; e < std::min(experts_, (v + 1) * kLanes); ++e)
            if (dropped[i][e])
              rank = _mm512_mask_mov_epi32(rank, __mmask16(1u << (e % kLanes)),
                                           _mm512_set1_epi32(kDropped));
        _mm512_store_si512(ranks + i * kLanes, rank);
      }
      __m512 column[kLanes];
      columns_of(reinterpret_cast<const float*>(ranks), kLanes, count, __mmask16(0xffff), column);
      for (int64_t e = 0; e < kLanes; ++e)
        columns_[v * kLanes + e] = _mm512_castps_si512(column[e]);
    }
  }

  int64_t experts_, top_k_, vectors_;
  Largest one_;
  std::vector<__m512i> columns_;  // of expert e, the ranks that the rows give it
  std::vector<int64_t> chosen_;
};

}  // namespace moeut

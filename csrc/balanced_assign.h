// Assign documents to clusters of equal size, nearest first.

#pragma once

#include <cstdint>
#include <vector>

namespace xelm {

// The cluster of each document; cluster sizes differ by at most one.
//
// Greedy over (document, cluster) pairs in order of distance, ties by position: a pair is taken if
// the document is free and the cluster has room. Every cluster has room for floor(N/K) documents;
// the N mod K clusters that first want one more get it.
//
// distance: row-major [num_documents, num_clusters]. Memory O(N + K), whatever N * K is.
// Throws std::invalid_argument on a NaN, or when there are documents and no cluster.
std::vector<int32_t> balanced_assign(const float* distance, int64_t num_documents, int64_t num_clusters);

}  // namespace xelm

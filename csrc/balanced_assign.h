// Documents to clusters of equal size, at the least total cost.

#pragma once

#include <cstdint>

namespace xelm {

// Balance an assignment that is best at given prices, by successive shortest paths; exact in integers.
//
// cost:       row-major [num_documents, num_clusters], the documents that may move. A document's cluster has
//             the lowest cost + price for it, before and after.
// cluster_of: [num_documents], moved in place.
// price:      [num_clusters], changed in place: dearer where there was a crowd.
// settled:    [num_clusters], how many further documents stay where they are. For each of them every other
//             cluster is worse by more than `reach`.
// reach:      prices move apart by at most this, so that settled documents stay where they are rightly.
//
// Every cluster gets floor(N/K) documents and N mod K of them one more, N counting the settled ones too.
// Returns how many documents are still too many somewhere: 0 when sizes are balanced, and the total cost is then
// the least there is; more than 0 when `reach` ends it, with all that was reached kept.
// Throws std::invalid_argument on a cluster or a size that cannot be.
int64_t balanced_assign(const int32_t* cost, int64_t num_documents, int64_t num_clusters,
                        int32_t* cluster_of, int64_t* price, const int64_t* settled, int64_t reach);

}  // namespace xelm

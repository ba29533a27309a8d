#include "balanced_assign.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace xelm {
namespace {

constexpr int64_t kFar = std::numeric_limits<int64_t>::max();
constexpr int64_t kNone = kFar / 4;  // of an arc or a path that is not there

// What a move costs more, and which document it moves; the cheapest on top.
using Move = std::pair<int64_t, int64_t>;
using Moves = std::vector<Move>;

// The graph of clusters. An arc i -> j is the cheapest move of a document of i to j. One more node, the
// pool, stands for the N mod K places beyond floor(N/K): an arc i -> pool takes such a place for cluster i,
// an arc pool -> j gives j's back. All arcs have reduced cost >= 0 at the current prices, always.
class Market {
 public:
  Market(const int32_t* cost, int64_t num_documents, int64_t num_clusters, int32_t* cluster_of,
         int64_t* price, const int64_t* settled, int64_t reach)
      : cost_(cost), n_(num_documents), k_(num_clusters), cluster_of_(cluster_of), price_(price), reach_(reach),
        first_price_(price, price + num_clusters), moves_(k_ * k_), dearer_(k_ * k_, kNone),
        excess_(settled, settled + k_), has_extra_(k_, false), distance_(k_ + 1), from_(k_ + 1),
        done_(k_ + 1) {
    for (int64_t n = 0; n < n_; ++n) ++excess_[cluster_of_[n]];
    set_room();
    for (int64_t n = 0; n < n_; ++n) offer(n, false);
    for (int64_t arc = 0; arc < k_ * k_; ++arc) {
      std::make_heap(moves_[arc].begin(), moves_[arc].end(), std::greater<Move>());
      if (!moves_[arc].empty()) dearer_[arc] = moves_[arc].front().first;
    }
  }

  int64_t balance() {
    int64_t left = 0;
    for (int64_t excess : excess_) left += std::max<int64_t>(excess, 0);
    while (left > 0) {
      const int64_t target = nearest_room();
      const int64_t far = target < 0 ? kNone : distance_[target];
      const int64_t allowed = reach_ == kFar ? kFar : reach_ - spread();
      if (far == kNone && allowed == kFar) break;  // settled documents alone crowd a cluster
      shift_prices(std::min(far, allowed));
      if (far > allowed) break;
      left -= augment(target);
    }
    return left;
  }

 private:
  // Extra places go to the dearest clusters, and the pool's price is that of the last one: no other choice
  // has reduced costs >= 0. Among equals the largest comes first.
  void set_room() {
    const int64_t total = std::accumulate(excess_.begin(), excess_.end(), int64_t{0});
    const int64_t extra = total % k_;
    std::vector<int64_t> order(k_);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [this](int64_t a, int64_t b) {
      return std::make_pair(-price_[a], -excess_[a]) < std::make_pair(-price_[b], -excess_[b]);
    });
    for (int64_t i = 0; i < extra; ++i) has_extra_[order[i]] = true;
    pool_price_ = price_[order[extra > 0 ? extra - 1 : 0]];
    for (int64_t k = 0; k < k_; ++k) excess_[k] -= total / k_ + has_extra_[k];
  }

  // Enter the moves of a document out of its cluster, those within reach when it began.
  void offer(int64_t n, bool heaped) {
    const int32_t* row = cost_ + n * k_;
    const int64_t own = cluster_of_[n];
    int64_t best = kFar;
    for (int64_t k = 0; k < k_; ++k) best = std::min(best, row[k] + first_price_[k]);
    for (int64_t k = 0; k < k_; ++k) {
      if (k == own || (reach_ != kFar && row[k] + first_price_[k] - best > reach_)) continue;
      Moves& moves = moves_[own * k_ + k];
      moves.emplace_back(int64_t{row[k]} - row[own], n);
      if (heaped) std::push_heap(moves.begin(), moves.end(), std::greater<Move>());
    }
  }

  // Drop moves of documents that have left cluster i, and note what the cheapest move to each other one costs.
  void refresh(int64_t i) {
    for (int64_t j = 0; j < k_; ++j) {
      Moves& moves = moves_[i * k_ + j];
      while (!moves.empty() && cluster_of_[moves.front().second] != i) {
        std::pop_heap(moves.begin(), moves.end(), std::greater<Move>());
        moves.pop_back();
      }
      dearer_[i * k_ + j] = moves.empty() ? kNone : moves.front().first;
    }
  }

  // Dijkstra from all crowded clusters to the nearest one with room; -1 if none can be reached.
  int64_t nearest_room() {
    std::fill(done_.begin(), done_.end(), false);
    std::fill(from_.begin(), from_.end(), -1);
    for (int64_t v = 0; v <= k_; ++v) distance_[v] = v < k_ && excess_[v] > 0 ? 0 : kNone;
    for (;;) {
      int64_t near = -1, least = kNone;
      for (int64_t v = 0; v <= k_; ++v) {
        if (!done_[v] && distance_[v] < least) near = v, least = distance_[v];
      }
      if (near < 0 || (near < k_ && excess_[near] < 0)) return near;
      done_[near] = true;
      if (near == k_) {
        for (int64_t j = 0; j < k_; ++j) {
          if (has_extra_[j]) relax(near, j, least + price_[j] - pool_price_);
        }
      } else {
        const int64_t* dearer = &dearer_[near * k_];
        for (int64_t j = 0; j < k_; ++j) {
          if (dearer[j] != kNone) relax(near, j, least + dearer[j] + price_[j] - price_[near]);
        }
        if (!has_extra_[near]) relax(near, k_, least + pool_price_ - price_[near]);
      }
    }
  }

  void relax(int64_t near, int64_t v, int64_t distance) {
    if (distance < distance_[v]) distance_[v] = distance, from_[v] = near;  // never one that is done
  }

  // Lower each price by its distance, up to `limit`: no arc turns negative, and the path has length 0.
  void shift_prices(int64_t limit) {
    for (int64_t k = 0; k < k_; ++k) price_[k] -= std::min(distance_[k], limit);
    pool_price_ -= std::min(distance_[k_], limit);
  }

  int64_t spread() const {
    int64_t low = 0, high = 0;
    for (int64_t k = 0; k < k_; ++k) {
      const int64_t change = price_[k] - first_price_[k];
      low = k == 0 ? change : std::min(low, change);
      high = k == 0 ? change : std::max(high, change);
    }
    return high - low;
  }

  // Move one document along each arc of the path to `target`, its last arc first.
  int64_t augment(int64_t target) {
    ++excess_[target];
    int64_t to = target;
    for (; from_[to] >= 0; to = from_[to]) {
      const int64_t i = from_[to];
      if (to == k_) {
        has_extra_[i] = true;
      } else if (i == k_) {
        has_extra_[to] = false;
      } else {
        const int64_t document = moves_[i * k_ + to].front().second;
        cluster_of_[document] = static_cast<int32_t>(to);
        offer(document, true);
        refresh(i);
        refresh(to);
      }
    }
    --excess_[to];
    return 1;
  }

  const int32_t* cost_;
  const int64_t n_, k_;
  int32_t* cluster_of_;
  int64_t* price_;
  const int64_t reach_;
  const std::vector<int64_t> first_price_;
  std::vector<Moves> moves_;        // of each arc, a heap
  std::vector<int64_t> dearer_;     // of each arc, what its cheapest move costs more
  std::vector<int64_t> excess_;  // documents beyond the room that the cluster has; negative: places left
  std::vector<bool> has_extra_;
  int64_t pool_price_ = 0;
  std::vector<int64_t> distance_, from_;
  std::vector<char> done_;
};

void check(const int32_t* cost, int64_t num_documents, int64_t num_clusters, const int32_t* cluster_of,
           const int64_t* price, const int64_t* settled) {
  if (num_clusters == 0) {
    throw std::invalid_argument("balanced_assign: cost=[" + std::to_string(num_documents) +
                                ", 0] has no cluster to put documents in");
  }
  for (int64_t k = 0; k < num_clusters; ++k) {
    if (settled[k] < 0) {
      throw std::invalid_argument("balanced_assign: settled[" + std::to_string(k) +
                                  "]=" + std::to_string(settled[k]) + " is no number of documents");
    }
  }
  for (int64_t n = 0; n < num_documents; ++n) {
    const int64_t own = cluster_of[n];
    const int32_t* row = cost + n * num_clusters;
    bool best = own >= 0 && own < num_clusters;
    for (int64_t k = 0; best && k < num_clusters; ++k) best = row[own] + price[own] <= row[k] + price[k];
    if (!best) {
      throw std::invalid_argument("balanced_assign: cluster_of[" + std::to_string(n) + "]=" +
                                  std::to_string(own) + " is not the best cluster at these prices");
    }
  }
}

}  // namespace

int64_t balanced_assign(const int32_t* cost, int64_t num_documents, int64_t num_clusters,
                        int32_t* cluster_of, int64_t* price, const int64_t* settled, int64_t reach) {
  check(cost, num_documents, num_clusters, cluster_of, price, settled);
  return Market(cost, num_documents, num_clusters, cluster_of, price, settled, reach).balance();
}

}  // namespace xelm

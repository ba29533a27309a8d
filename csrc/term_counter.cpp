#include "term_counter.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>

#include "parallel.h"

namespace xelm {
namespace {

constexpr int64_t kDocumentsAnItem = 16;
constexpr int64_t kAhead = 12;  // lookups whose memory is asked for at a time
constexpr size_t kMostFiles = 64, kFilesAMerge = 32;

}  // namespace

TermCounter::TermCounter(const AnalyzerSettings& settings, const TermTable* stop_words, int num_threads,
                         int64_t memory_bytes, const std::string& folder)
    // While it grows, a vector that doubles is there three times in its former size.
    : bytes_a_worker_(memory_bytes / num_threads / 3), folder_(folder) {
  for (int i = 0; i < num_threads; ++i) workers_.push_back(std::make_unique<Worker>(settings, stop_words));
}

void TermCounter::add(const std::vector<Text>& documents) {
  const auto size = static_cast<int64_t>(documents.size());
  const int64_t num_items = (size + kDocumentsAnItem - 1) / kDocumentsAnItem;
  parallel_for(num_items, static_cast<int>(workers_.size()), [&](int number, int64_t item) {
    Worker& worker = *workers_[number];
    for (int64_t i = item * kDocumentsAnItem; i < std::min(size, (item + 1) * kDocumentsAnItem); ++i) {
      worker.count(documents[i]);
      if (worker.bytes() > bytes_a_worker_) spill(worker);
    }
  });
  num_documents_ += size;
  while (files_.size() > kMostFiles) merge_files();
}

void TermCounter::Worker::count(const Text& text) {
  ++document;
  const std::vector<Term>& terms = analyzer.terms(text);
  const auto size = static_cast<int64_t>(terms.size());
  for (int64_t i = 0; i < size; ++i) {
    if (i + kAhead < size) table.prefetch(terms[i + kAhead]);
    const int64_t number = table.insert(terms[i]);
    if (number == static_cast<int64_t>(counts.size())) counts.emplace_back();
    Count& count = counts[number];
    ++count.occurrences;
    count.documents += count.last_document != document;
    count.last_document = document;
  }
}

int64_t TermCounter::Worker::bytes() const {
  return table.bytes() + static_cast<int64_t>(counts.capacity() * sizeof(Count));
}

void TermCounter::spill(Worker& worker) {
  TableRun run(worker.table, worker.table.in_order(), worker.counts);
  const File file = write(run);
  worker.table.clear();
  worker.counts = {};
  worker.order = {};
  const std::lock_guard<std::mutex> lock(files_mutex_);
  files_.push_back(file);
}

TermCounter::File TermCounter::write(Run& run) {
  const std::string path = folder_ + "/" + std::to_string(num_files_++);
  return {path, write_run(path, run)};
}

// Joins the smallest files, so that there are never more than can be open at a time.
void TermCounter::merge_files() {
  const auto last = files_.begin() + kFilesAMerge;
  std::partial_sort(files_.begin(), last, files_.end(),
                    [](const File& a, const File& b) { return a.bytes < b.bytes; });
  const File merged = [&] {
    std::vector<std::unique_ptr<Run>> runs;
    for (auto file = files_.begin(); file != last; ++file) runs.push_back(std::make_unique<FileRun>(file->path));
    MergedRun run(std::move(runs));
    return write(run);
  }();
  for (auto file = files_.begin(); file != last; ++file) std::remove(file->path.c_str());
  files_.erase(files_.begin(), last);
  files_.push_back(merged);
}

void TermCounter::put_in_order() {
  const auto num_workers = static_cast<int>(workers_.size());
  parallel_for(num_workers, num_workers, [&](int, int64_t number) {
    Worker& worker = *workers_[number];
    if (static_cast<int64_t>(worker.order.size()) != worker.table.size()) worker.order = worker.table.in_order();
  });
}

template <class Take>
void TermCounter::each(const Take& take) {
  put_in_order();
  std::vector<std::unique_ptr<Run>> runs;
  for (const auto& worker : workers_) {
    runs.push_back(std::make_unique<TableRun>(worker->table, worker->order, worker->counts));
  }
  for (const File& file : files_) runs.push_back(std::make_unique<FileRun>(file.path));
  MergedRun merged(std::move(runs));
  while (merged.next()) take(merged.term());
}

std::vector<double> TermCounter::occurrences(int64_t most) {
  std::vector<double> occurrences;
  each([&](const CountedTerm& term) {
    if (static_cast<int64_t>(occurrences.size()) < most) {
      occurrences.push_back(static_cast<double>(term.count.occurrences));
    }
  });
  return occurrences;
}

Terms TermCounter::all() {
  Terms terms;
  each([&](const CountedTerm& term) { terms.add(term); });
  return terms;
}

Terms TermCounter::at(const std::vector<int64_t>& positions) {
  Terms terms;
  int64_t position = 0;
  auto wanted = positions.begin();
  each([&](const CountedTerm& term) {
    if (wanted != positions.end() && *wanted == position++) {
      ++wanted;
      terms.add(term);
    }
  });
  return terms;
}

Terms TermCounter::most_frequent(int64_t limit) {
  std::map<int64_t, int64_t> terms_of;  // occurrences -> terms that occur so often
  each([&](const CountedTerm& term) { ++terms_of[term.count.occurrences]; });
  int64_t least = 0, room = limit;  // of the terms that occur `least` times, the first `room` have a place
  for (auto level = terms_of.rbegin(); level != terms_of.rend(); ++level) {
    least = level->first;
    if (level->second >= room || std::next(level) == terms_of.rend()) break;
    room -= level->second;
  }
  Terms terms;
  each([&](const CountedTerm& term) {
    const int64_t occurrences = term.count.occurrences;
    if (occurrences > least || (occurrences == least && room-- > 0)) terms.add(term);
  });
  return terms;
}

}  // namespace xelm

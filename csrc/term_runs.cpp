#include "term_runs.h"

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace xelm {
namespace {

constexpr size_t kBufferBytes = 1 << 18;

// What stands before a term's text in a file.
struct Header {
  int64_t occurrences, documents, length;
};

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw std::system_error(errno ? errno : EIO, std::generic_category(), path + " " + what);
}

}  // namespace

bool TableRun::next() {
  if (at_ == order_.size()) return false;
  const uint32_t number = order_[at_++];
  term_ = {table_.text(number), counts_[number]};
  return true;
}

FileRun::FileRun(const std::string& path) : path_(path), buffer_(kBufferBytes) {
  file_.rdbuf()->pubsetbuf(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
  errno = 0;
  file_.open(path, std::ios::binary);
  if (!file_) fail(path_, "cannot be opened");
}

bool FileRun::next() {
  if (file_.peek() == std::ifstream::traits_type::eof()) return false;
  Header header;
  read(reinterpret_cast<char*>(&header), sizeof header);
  text_.resize(header.length);
  read(text_.data(), header.length);
  term_ = {text_, {header.occurrences, header.documents, 0}};
  return true;
}

void FileRun::read(char* to, int64_t length) {
  errno = 0;
  if (!file_.read(to, length)) fail(path_, "cannot be read");
}

int64_t write_run(const std::string& path, Run& run) {
  std::vector<char> buffer(kBufferBytes);
  std::ofstream file;
  file.rdbuf()->pubsetbuf(buffer.data(), static_cast<std::streamsize>(buffer.size()));
  errno = 0;
  file.open(path, std::ios::binary);
  while (file && run.next()) {
    const CountedTerm& term = run.term();
    const Header header{term.count.occurrences, term.count.documents, static_cast<int64_t>(term.text.size())};
    file.write(reinterpret_cast<const char*>(&header), sizeof header);
    file.write(term.text.data(), static_cast<std::streamsize>(term.text.size()));
  }
  const int64_t bytes = file.tellp();
  file.close();
  if (!file) fail(path, "cannot be written");
  return bytes;
}

MergedRun::MergedRun(std::vector<std::unique_ptr<Run>> runs) : runs_(std::move(runs)) {
  for (const auto& run : runs_) advance(run.get());
}

void MergedRun::advance(Run* run) {
  if (!run->next()) return;
  heap_.push_back(run);
  std::push_heap(heap_.begin(), heap_.end(), comes_later);
}

bool MergedRun::next() {
  if (heap_.empty()) return false;
  text_ = heap_.front()->term().text;
  Count sum;
  while (!heap_.empty() && heap_.front()->term().text == text_) {
    std::pop_heap(heap_.begin(), heap_.end(), comes_later);
    Run* run = heap_.back();
    heap_.pop_back();
    sum.occurrences += run->term().count.occurrences;
    sum.documents += run->term().count.documents;
    advance(run);
  }
  term_ = {text_, sum};
  return true;
}

}  // namespace xelm

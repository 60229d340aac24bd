#include "engine/step_arena.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/memory_plan.h"
#include "engine/require.h"

namespace graft {
namespace {

constexpr std::uint64_t kIndexBits = 32;
constexpr std::uint64_t kIndexMask = (std::uint64_t{1} << kIndexBits) - 1;

std::uint64_t ticket_of(std::uint64_t pass, std::size_t index) { return pass << kIndexBits | index; }

}  // namespace

StepArena::StepArena(std::shared_ptr<AddressRange> range, std::string name)
    : range_(std::move(range)), name_(std::move(name)) {}
StepArena::~StepArena() = default;

Block StepArena::allocate(std::size_t bytes, std::string_view name) {
  require(in_step_, "{}: {} was allocated outside a step", name_, name);
  const std::uint64_t ticket = ticket_of(pass_, next_);
  if (!planned_) {
    // Addresses do not matter yet: the stream discards launches while it plans.
    entries_.push_back({std::string(name), bytes, event_++, -1, 0, true});
    ++next_;
    return {range_->base(), bytes, ticket};
  }
  require(next_ < entries_.size(), "{}: {} ({} bytes) is one allocation more than the {} planned", name_, name, bytes,
          entries_.size());
  Entry& entry = entries_[next_];
  require(entry.bytes == bytes, "{}: allocation {} is {} of {} bytes, planned was {} of {} bytes", name_, next_, name,
          bytes, entry.name, entry.bytes);
  require(entry.first == event_ && !diverged_,
          "{}: before allocation {}, {}, tensors were released in another order than planned", name_, next_, name);
  entry.alive = true;
  ++next_;
  ++event_;
  return {range_->base() + entry.offset, bytes, ticket};
}

void StepArena::release(const Block& block) noexcept {
  if (block.ticket >> kIndexBits != pass_) return;  // of an earlier pass, which has reported it at its end
  Entry& entry = entries_[block.ticket & kIndexMask];
  entry.alive = false;
  if (!planned_) {
    entry.last = event_;
  } else if (entry.last != event_) {
    diverged_ = true;
  }
  ++event_;
}

void StepArena::begin_step() {
  if (!planned_) entries_.clear();
  for (Entry& entry : entries_) entry.alive = false;
  next_ = 0;
  ++pass_;
  event_ = 0;
  diverged_ = false;
  in_step_ = true;
}

void StepArena::end_step() {
  in_step_ = false;
  std::string alive;
  for (const Entry& entry : entries_) {
    if (entry.alive) alive += fmt::format("{}{} ({} bytes)", alive.empty() ? "" : ", ", entry.name, entry.bytes);
  }
  require(alive.empty(), "{}: still alive at the end of the step: {}; what outlives a step belongs in run memory",
          name_, alive);
  require(!planned_ || next_ == entries_.size(), "{}: {} allocations, planned were {}", name_, next_, entries_.size());
  require(!diverged_, "{}: tensors were released in another order than planned", name_);
}

void StepArena::plan_only() {
  require(!in_step_, "{}: planning inside a step", name_);
  std::vector<Lifetime> lifetimes;
  lifetimes.reserve(entries_.size());
  for (const Entry& entry : entries_) lifetimes.push_back({entry.bytes, entry.first, entry.last});
  const MemoryPlan plan = plan_memory(lifetimes);
  for (std::size_t i = 0; i < entries_.size(); ++i) entries_[i].offset = plan.offsets[i];
  planned_bytes_ = plan.total;
}

void StepArena::plan() {
  plan_only();
  range_->grow(planned_bytes_);
  planned_ = true;
}

std::vector<StepArena::Usage> StepArena::largest(std::size_t count) const {
  // The peak is at some allocation; the plan's size is at least what is alive there.
  std::int64_t peak_event = 0;
  std::size_t peak_bytes = 0;
  for (const Entry& at : entries_) {
    std::size_t bytes = 0;
    for (const Entry& entry : entries_) {
      if (entry.first <= at.first && at.first <= entry.last) bytes += entry.bytes;
    }
    if (bytes > peak_bytes) {
      peak_bytes = bytes;
      peak_event = at.first;
    }
  }
  std::vector<Usage> result;
  for (const Entry& entry : entries_) {
    if (entry.first > peak_event || peak_event > entry.last) continue;
    const auto same =
        std::find_if(result.begin(), result.end(), [&](const Usage& usage) { return usage.name == entry.name; });
    if (same == result.end()) {
      result.push_back({entry.name, entry.bytes});
    } else {
      same->bytes += entry.bytes;
      ++same->count;
    }
  }
  std::stable_sort(result.begin(), result.end(), [](const Usage& a, const Usage& b) { return a.bytes > b.bytes; });
  if (result.size() > count) result.resize(count);
  return result;
}

}  // namespace graft

#include "train/checkpoint_writer.h"

#include <pthread.h>

#include <chrono>
#include <csignal>
#include <exception>
#include <utility>

#include "engine/error.h"
#include "engine/require.h"

namespace graft {
namespace {

/// Signals are the business of the thread that trains: here they would only interrupt system calls.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

CheckpointWriter::CheckpointWriter(CheckpointDirectory& directory, RetentionPolicy policy, Patience patience)
    : directory_(directory), policy_(policy), patience_(patience) {
  require(patience.attempts >= 1, "checkpoint: {} attempts, expected at least 1", patience.attempts);
  const NoSignals inherited;  // a thread starts with its creator's mask
  thread_ = std::thread([this] { work(); });
}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    hurry_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CheckpointWriter::start(Job job) {
  wait();
  {
    const std::lock_guard lock(mutex_);
    job_ = std::move(job);
    hurry_ = false;
  }
  changed_.notify_all();
}

void CheckpointWriter::wait() {
  std::unique_lock lock(mutex_);
  hurry_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !job_.has_value(); });
}

bool CheckpointWriter::busy() const {
  const std::lock_guard lock(mutex_);
  return job_.has_value();
}

std::vector<CheckpointWriter::Report> CheckpointWriter::take_reports() {
  const std::lock_guard lock(mutex_);
  return std::exchange(reports_, {});
}

void CheckpointWriter::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return job_.has_value() || stopping_; });
    if (!job_) return;
    const Job job = *job_;
    lock.unlock();
    attempt_all(job);
    lock.lock();
    job_.reset();
    changed_.notify_all();
  }
}

void CheckpointWriter::attempt_all(const Job& job) {
  double pause = patience_.first_pause;
  for (int tried = 1;; ++tried) {
    Report report = attempt(job);
    report.final = report.final || tried == patience_.attempts;
    const bool done = report.final;
    std::unique_lock lock(mutex_);
    reports_.push_back(std::move(report));
    if (done) return;
    changed_.wait_for(lock, std::chrono::duration<double>(pause), [this] { return hurry_; });
    pause *= patience_.factor;
  }
}

CheckpointWriter::Report CheckpointWriter::attempt(const Job& job) {
  Report report;
  report.step = job.step;
  try {
    report.nonfinite = directory_.save(job.content()).nonfinite;
  } catch (const EnvironmentError& error) {
    report.problem = error.what();
    report.final = false;
    return report;
  } catch (const std::exception& error) {  // trying again would not help
    report.problem = error.what();
    return report;
  }
  try {
    directory_.prune(policy_);
  } catch (const std::exception& error) {
    report.not_pruned = error.what();
  }
  return report;
}

}  // namespace graft

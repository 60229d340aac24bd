#include "bench/support/op_report.h"

#include <fmt/format.h>

#include "engine/error.h"

namespace graft::bench {

OpReport::OpReport(std::size_t width, const std::string& json_path)
    : width_(width), path_(json_path), table_(benchmark::ConsoleReporter::OO_Tabular) {
  if (path_.empty()) return;
  file_.open(path_);
  if (!file_) throw EnvironmentError(fmt::format("bench ops: {} cannot be written", path_));
  json_.SetOutputStream(&file_);
}

bool OpReport::ReportContext(const Context& context) {
  Context plain = context;
  plain.name_field_width = width_;
  return table_.ReportContext(plain) && (path_.empty() || json_.ReportContext(plain));
}

void OpReport::ReportRuns(const std::vector<Run>& runs) {
  std::vector<Run> plain = runs;
  std::erase_if(plain, [](const Run& run) { return run.error_occurred; });
  if (plain.empty()) return;
  for (Run& run : plain) {
    run.run_name.iterations.clear();
    run.run_name.time_type.clear();
  }
  table_.ReportRuns(plain);
  table_.GetOutputStream().flush();
  if (!path_.empty()) json_.ReportRuns(plain);
}

void OpReport::Finalize() {
  table_.Finalize();
  if (!path_.empty()) json_.Finalize();
}

void OpReport::close() {
  if (!path_.empty() && !file_.flush()) throw EnvironmentError(fmt::format("bench ops: {} cannot be written", path_));
}

}  // namespace graft::bench

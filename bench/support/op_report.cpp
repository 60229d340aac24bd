#include "bench/support/op_report.h"

#include <string>
#include <utility>

namespace graft::bench {

OpReport::OpReport(std::size_t width, Table& table, ResultFile& file)
    : width_(width),
      table_(table),
      file_(file),
      json_text_(std::ios::ate),
      console_(benchmark::ConsoleReporter::OO_Tabular) {
  console_.SetOutputStream(&text_);
  json_.SetOutputStream(&json_text_);
}

bool OpReport::ReportContext(const Context& context) {
  Context plain = context;
  plain.name_field_width = width_;
  const bool wanted = console_.ReportContext(plain) && json_.ReportContext(plain);
  show();
  return wanted;
}

void OpReport::ReportRuns(const std::vector<Run>& runs) {
  std::vector<Run> plain = runs;
  std::erase_if(plain, [](const Run& run) { return run.error_occurred && run.error_message == kNotRun; });
  if (plain.empty()) return;
  for (Run& run : plain) {
    run.run_name.iterations.clear();
    run.run_name.time_type.clear();
  }
  console_.ReportRuns(plain);
  show();
  json_.ReportRuns(plain);
  save();
}

void OpReport::Finalize() {
  console_.Finalize();
  show();
  save();
}

void OpReport::show() {
  table_.print(text_.str());
  text_.str({});
}

/// What there is so far, with the end that the harness would write now.
void OpReport::save() {
  std::string so_far = json_text_.str();
  json_.Finalize();
  file_.write(json_text_.str());
  json_text_.str(std::move(so_far));
}

}  // namespace graft::bench

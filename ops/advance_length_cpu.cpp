#include <cstdint>

#include "ops/advance_length.h"

namespace graft {
namespace {

void advance(Stream&, const AdvanceLength& args) { *args.length.as<std::int32_t>() += args.tokens; }

const Register registered{advance_length_kernel, Backend::Cpu, advance};

}  // namespace
}  // namespace graft

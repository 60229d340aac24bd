#include "engine/stream.h"

#include "engine/require.h"

namespace graft {

void Stream::set_planning(bool planning) {
  require(mode_ != Mode::Capturing, "stream: cannot start planning while capturing");
  mode_ = planning ? Mode::Planning : Mode::Eager;
}

}  // namespace graft

#include "train/config_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>

#include "engine/error.h"
#include "train/suggest.h"

namespace graft {
namespace {

[[noreturn]] void refuse_file(const std::string& path, std::string_view why) {
  throw ConfigError(fmt::format("{}: {}", shown(path, 256), why));
}

std::string nearest_file(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(directory.empty() ? "." : directory.c_str()), closedir);
  if (listing == nullptr) return {};
  std::vector<std::string> names;
  constexpr std::size_t kEnough = 2000;  // the answer to a typing mistake must not take long
  while (const dirent* entry = readdir(listing.get())) {
    const std::string_view candidate = entry->d_name;
    if (candidate.ends_with(".toml")) names.emplace_back(candidate);
    if (names.size() >= kEnough) break;
  }
  std::sort(names.begin(), names.end());
  const std::string nearest = nearest_name(name.ends_with(".toml") ? name : name + ".toml", names);
  return nearest.empty() ? nearest : directory + nearest;
}

}  // namespace

std::size_t first_bad_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(text[i])); };
  for (std::size_t i = 0; i < text.size();) {
    for (std::uint64_t eight = 0; i + sizeof(eight) <= text.size(); i += sizeof(eight)) {  // most text is ASCII
      std::memcpy(&eight, text.data() + i, sizeof(eight));
      if ((eight & 0x8080808080808080U) != 0) break;
    }
    if (i == text.size()) break;
    const unsigned lead = byte(i);
    const std::size_t length = lead < 0x80                   ? 1
                               : lead >= 0xc2 && lead < 0xe0 ? 2
                               : (lead & 0xf0U) == 0xe0      ? 3
                               : lead >= 0xf0 && lead < 0xf5 ? 4
                                                             : 0;
    if (length == 0 || i + length > text.size()) return i;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xc0U) != 0x80) return i;
    }
    if (length == 3 && ((lead == 0xe0 && byte(i + 1) < 0xa0) || (lead == 0xed && byte(i + 1) >= 0xa0))) return i;
    if (length == 4 && ((lead == 0xf0 && byte(i + 1) < 0x90) || (lead == 0xf4 && byte(i + 1) >= 0x90))) return i;
    i += length;
  }
  return std::string_view::npos;
}

bool is_utf8(std::string_view text) { return first_bad_utf8(text) == std::string_view::npos; }

std::string shown(std::string_view name, std::size_t longest) {
  std::string text;
  while (!name.empty()) {
    const std::size_t good = std::min(first_bad_utf8(name), name.size());
    for (std::size_t i = 0; i < good; ++i) {
      const auto byte = static_cast<unsigned char>(name[i]);
      if (byte == 0xc2 && static_cast<unsigned char>(name[i + 1]) < 0xa0) {  // U+0080 to U+009F
        text += '?';
        ++i;
      } else {
        text += byte < 0x20 || byte == 0x7f ? '?' : name[i];
      }
    }
    if (good < name.size()) text += '?';
    name.remove_prefix(std::min(good + 1, name.size()));
  }
  if (text.size() <= longest) return text;
  const auto boundary = [&](std::size_t i) {  // not inside a character
    while (i < text.size() && (static_cast<unsigned char>(text[i]) & 0xc0U) == 0x80) ++i;
    return i;
  };
  const std::size_t head = boundary(longest / 2);
  const std::size_t tail = boundary(text.size() - longest / 4);
  return fmt::format("{}...{} ({} bytes)", text.substr(0, head), text.substr(tail), text.size());
}

std::string read_config_file(const std::string& path) {
  if (path.empty()) throw ConfigError("configuration: got an empty file name, expected a TOML file");
  if (path.find('\0') != std::string::npos) refuse_file(path, "got a zero byte in the file's name");
  // Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
  const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) {
    const int status = errno;
    struct stat info {};
    if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) {
      refuse_file(path, "is not a regular file, expected a TOML file");
    }
    if (status == ENOENT || status == ENOTDIR) {
      const std::string nearest = nearest_file(path);
      refuse_file(path, nearest.empty() ? "no such file" : fmt::format("no such file; did you mean `{}`?", nearest));
    }
    refuse_file(path, fmt::format("cannot be read: {}", std::strerror(status)));
  }
  struct Closer {
    int fd;
    ~Closer() { close(fd); }
  } const closer{fd};
  struct stat info {};
  if (fstat(fd, &info) != 0) refuse_file(path, fmt::format("cannot be read: {}", std::strerror(errno)));
  if (S_ISDIR(info.st_mode)) refuse_file(path, "is a directory, expected a TOML file");
  if (!S_ISREG(info.st_mode)) refuse_file(path, "is not a regular file, expected a TOML file");

  // The size is judged by what can be read: files of /proc and files being written have no fixed one.
  std::string text(kLargestConfig + 1, '\0');
  std::size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = read(fd, text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse_file(path, fmt::format("cannot be read: {}", std::strerror(errno)));
    if (got == 0) break;
    filled += static_cast<std::size_t>(got);
  }
  if (filled > kLargestConfig) {
    refuse_file(path, fmt::format("is larger than {} KiB, expected a configuration", kLargestConfig >> 10));
  }
  if (filled == 0) refuse_file(path, "is empty, expected at least task.name and model.preset");
  text.resize(filled);
  return text;
}

}  // namespace graft

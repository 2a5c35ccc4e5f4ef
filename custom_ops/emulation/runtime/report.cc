#include "report.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <vector>

namespace tftoolkit::emulation {
namespace {

struct Frame {
  std::string function, file, line;
};

std::string Base(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// What addr2line says of an instruction: the innermost of the inlined functions first. Empty without addr2line.
std::vector<Frame> Frames(const Program& program, uint32_t offset) {
  Dl_info info;
  if (dladdr(program.begin, &info) == 0) return {};
  char command[4096 + 64];
  std::snprintf(command, sizeof command, "addr2line -C -f -i -e '%s' 0x%x 2>/dev/null", info.dli_fname, offset);
  std::FILE* pipe = popen(command, "re");
  if (pipe == nullptr) return {};
  std::vector<Frame> frames;
  char function[4096], place[4096];
  while (std::fgets(function, sizeof function, pipe) && std::fgets(place, sizeof place, pipe)) {
    const std::string text(place, std::strcspn(place, " \n"));
    const size_t colon = text.rfind(':');
    if (colon == std::string::npos) continue;
    frames.push_back(
        {std::string(function, std::strcspn(function, "\n")), text.substr(0, colon), text.substr(colon + 1)});
  }
  pclose(pipe);
  return frames;
}

// Ours: what the kernel's author did not write.
bool IsShim(const Frame& frame) {
  return frame.file.find("/emulation/include/") != std::string::npos || frame.file.find("/c++/") != std::string::npos;
}

}  // namespace

// The instruction before: what is at hand is where a call returns to.
uint32_t Offset(const Program& program, const void* pc) {
  return static_cast<uint32_t>(static_cast<const char*>(pc) - program.begin) - 1;
}

bool Contains(const Program& program, const void* address) { return address >= program.begin && address < program.end; }

std::string Source(const Program& program, uint32_t offset) {
  std::string text;
  int shown = 0;
  for (const Frame& frame : Frames(program, offset)) {
    if (IsShim(frame) || frame.file == "??") continue;
    const std::string place = Base(frame.file) + ":" + frame.line;
    text += shown == 0 ? place : " (inlined at " + place + ")";
    if (++shown == 2) break;
  }
  if (text.empty()) {
    char place[32];
    std::snprintf(place, sizeof place, "instruction 0x%x", offset);
    return place;
  }
  return text;
}

std::string KernelName(const Program& program, uint32_t offset, const char* otherwise) {
  const std::vector<Frame> frames = Frames(program, offset);
  if (frames.empty() || frames.back().function == "??") return otherwise;
  std::string name = frames.back().function;
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t at = name.find(anonymous); at != std::string::npos; at = name.find(anonymous))
    name.erase(at, anonymous.size());
  const size_t parameters = name.find('(');
  name = name.substr(0, parameters);
  // A template's name is printed with its return type.
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == ' ' && depth == 0) begin = i + 1;
  }
  return name.substr(begin);
}

std::string Describe(Place place) { return Base(place.file) + ":" + std::to_string(place.line); }

bool SameFile(Place one, Place other) { return one.file == other.file || std::strcmp(one.file, other.file) == 0; }

}  // namespace tftoolkit::emulation

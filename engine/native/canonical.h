// The digest of a manifest: SHA-256 of the JSON that Python's json.dumps(.., sort_keys=True, separators=(",", ":"))
// writes of it without its `digest` entry. Written out again from the tree, since the file itself is indented.
#pragma once

#include <string>

#include "json.h"

namespace pfdiff::json {

// Python's form of a tree: keys in code point order, ASCII only, floats as repr() writes them.
std::string canonical(const Value& value);

// The digest of a manifest's tree; the entry `digest` of the outermost object does not count.
std::string manifest_digest(const Value& manifest);

}  // namespace pfdiff::json

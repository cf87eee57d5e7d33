// Protobuf's wire format (protobuf.dev/programming-guides/encoding): a field is a varint `number << 3 | type` and a
// value: a varint (type 0), 8 bytes (1), a length and as many bytes (2), or 4 bytes (5). Field numbers: onnx.proto.
#include "external_weights.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace pfdiff {
namespace {

constexpr int deepest = 100;                  // protobuf's own limit of messages within messages
constexpr std::size_t most_locations = 1024;  // files; ours have one
constexpr std::uint64_t longest_location = 1024;

enum class Message { model, graph, node, attribute, tensor, sparse_tensor, function, training, entry };

// In which field of which message another message lies. What is not listed leads to no tensor and is skipped.
struct Child {
    Message in;
    std::uint64_t field;
    Message message;
};
constexpr Child children[] = {
    {Message::model, 7, Message::graph},
    {Message::model, 20, Message::training},
    {Message::model, 25, Message::function},
    {Message::graph, 1, Message::node},
    {Message::graph, 5, Message::tensor},
    {Message::graph, 15, Message::sparse_tensor},
    {Message::node, 5, Message::attribute},
    {Message::attribute, 5, Message::tensor},
    {Message::attribute, 6, Message::graph},
    {Message::attribute, 10, Message::tensor},
    {Message::attribute, 11, Message::graph},
    {Message::attribute, 22, Message::sparse_tensor},
    {Message::attribute, 23, Message::sparse_tensor},
    {Message::sparse_tensor, 1, Message::tensor},
    {Message::sparse_tensor, 2, Message::tensor},
    {Message::function, 7, Message::node},
    {Message::function, 11, Message::attribute},
    {Message::training, 1, Message::graph},
    {Message::training, 2, Message::graph},
    {Message::tensor, 13, Message::entry},  // external_data: key and value
};

class Walk final {
   public:
    Walk(Descriptor file, std::uint64_t bytes, const std::string& name)
        : file_(std::move(file)), bytes_(bytes), name_(name) {}

    std::set<std::string> locations() {
        message(Message::model, 0, bytes_, 0);
        return std::move(found_);
    }

   private:
    [[noreturn]] void refuse() const {
        throw file_error(quoted(name_) + " is no ONNX model, or is damaged; rebuild the engine or copy it again");
    }

    // The byte at a place of the file, which lies before `end`; read in windows, so that weights are passed over.
    unsigned char byte(std::uint64_t at, std::uint64_t end) {
        if (at >= end) refuse();
        if (at < window_at_ || at >= window_at_ + window_size_) {
            ssize_t got;
            do got = ::pread(file_.get(), window_.data(), window_.size(), static_cast<off_t>(at));
            while (got < 0 && errno == EINTR);
            if (got < 0) throw file_error(quoted(name_) + " cannot be read: " + std::strerror(errno));
            if (got == 0) refuse();  // shorter than when it was opened
            window_at_ = at, window_size_ = static_cast<std::uint64_t>(got);
        }
        return window_[at - window_at_];
    }

    std::uint64_t varint(std::uint64_t& at, std::uint64_t end) {
        std::uint64_t value = 0;
        for (int shift = 0; shift < 70; shift += 7) {
            const auto part = byte(at++, end);
            value |= static_cast<std::uint64_t>(part & 0x7F) << shift;
            if (part < 0x80) return value;
        }
        refuse();
    }

    std::string text(std::uint64_t at, std::uint64_t end) {
        if (end - at > longest_location) refuse();
        std::string result;
        while (at < end) result += static_cast<char>(byte(at++, end));
        return result;
    }

    void message(Message kind, std::uint64_t at, std::uint64_t end, int depth) {
        if (depth > deepest) refuse();
        std::string key, value;
        while (at < end) {
            const auto tag = varint(at, end), field = tag >> 3, type = tag & 7;
            if (field == 0) refuse();
            std::uint64_t size = type == 1 ? 8 : type == 5 ? 4 : 0;
            if (type == 0) varint(at, end);
            if (type == 2) size = varint(at, end);
            if (type == 3 || type == 4 || type > 5 || size > end - at) refuse();
            if (type == 2) {
                if (kind == Message::entry && field == 1) key = text(at, at + size);
                if (kind == Message::entry && field == 2) value = text(at, at + size);
                const auto* child = std::find_if(std::begin(children), std::end(children), [&](const Child& each) {
                    return each.in == kind && each.field == field;
                });
                if (child != std::end(children)) message(child->message, at, at + size, depth + 1);
            }
            at += size;
        }
        if (kind == Message::entry && key == "location") found_.insert(value);
        if (found_.size() > most_locations) refuse();
    }

    Descriptor file_;
    std::uint64_t bytes_;
    const std::string& name_;
    std::array<unsigned char, 1 << 16> window_{};
    std::uint64_t window_at_ = 0, window_size_ = 0;
    std::set<std::string> found_;
};

}  // namespace

std::set<std::string> external_weights(const Directory& directory, const std::string& name) {
    std::uint64_t bytes = 0;
    auto file = directory.open(name, bytes);
    return Walk(std::move(file), bytes, name).locations();
}

}  // namespace pfdiff

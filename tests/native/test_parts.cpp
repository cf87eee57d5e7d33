// The library's parts: SHA-256, JSON, halves, noise, the update against a plain loop, the worker team.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "canonical.h"
#include "check.h"
#include "element.h"
#include "engine_fixture.h"
#include "error.h"
#include "feed.h"
#include "halfs.h"
#include "update.h"

namespace {

std::string sha256(const std::string& text, std::size_t piece) {
    pfdiff::Sha256 hash;
    for (std::size_t at = 0; at < text.size(); at += piece)
        hash.update(text.data() + at, std::min(piece, text.size() - at));
    return hash.finish();
}

// FIPS 180-4 examples and the million a's, whole and in pieces around the block of 64 bytes.
void test_sha256() {
    CHECK(sha256("", 1) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256("abc", 1) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for (const std::size_t piece : {1, 7, 63, 64, 65, 1000}) {
        CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", piece) ==
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
        CHECK(sha256(std::string(1000000, 'a'), piece) ==
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}

void test_json() {
    using namespace pfdiff::json;
    const auto canonical_of = [](const char* text) { return canonical(parse(text, "text")); };
    // As Python's json.dumps(.., sort_keys=True, separators=(",", ":")) writes them.
    CHECK(canonical_of("[1, 1.0, 1e16, 1e15, 1e-4, 1e-5, -0.0, 0.1, 123456.789, 1.5e300, 5e-324]") ==
          "[1,1.0,1e+16,1000000000000000.0,0.0001,1e-05,-0.0,0.1,123456.789,1.5e+300,5e-324]");
    CHECK(canonical_of("\"\x7f\"") == "\"\\u007f\"");
    CHECK(canonical_of(R"({"b": true, "a": null, "\u00e9": "\ud83d\ude00\u0007\n\"\\/"})") ==
          R"({"a":null,"b":true,"\u00e9":"\ud83d\ude00\u0007\n\"\\/"})");
    const std::string deep = std::string(33, '[') + std::string(33, ']');
    for (const char* wrong : {"",
                              "{",
                              "[1,]",
                              "01",
                              "1.",
                              ".5",
                              "+1",
                              "NaN",
                              "[1 2]",
                              "\"\\x\"",
                              "\"\\ud800\"",
                              "\"\x01\"",
                              "\"\xC0\x80\"",
                              "\"\xED\xA0\x80\"",
                              "tru",
                              "1e999",
                              "1e-999",
                              "{\"a\":1,\"a\":1}",
                              "{1:2}",
                              "[] []",
                              "\xEF\xBB\xBF[]",
                              "\"\x80\"",
                              "\"\xF5\x80\x80\x80\"",
                              "// note\n1",
                              deep.c_str()}) {
        CHECK_REFUSED(parse(wrong, "text"), "text: ");
    }
    CHECK_REFUSED(parse({"[]\0[]", 5}, "text"), "text: no valid JSON near byte 2");
    CHECK_REFUSED(parse(deep, "text"), "more than 32 levels");
    CHECK_REFUSED(parse("[{\"a\":1,\"b\":{\"c\":1,\"c\":2}}]", "text"), "the key 'c' stands twice");
    const auto fields = [](int count) {
        std::string text = "{";
        for (int i = 0; i < count; ++i) text += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":0";
        return text + "}";
    };
    const auto items = [](std::size_t count) {
        std::string text = "[0";
        for (std::size_t i = 1; i < count; ++i) text += ",0";
        return text + "]";
    };
    CHECK(parse(std::string(32, '[') + std::string(32, ']'), "text").data.index() == 4);
    CHECK(std::get<Object>(parse(fields(4096), "text").data).size() == 4096);
    CHECK_REFUSED(parse(fields(4097), "text"), "more than 4096 fields");
    CHECK(std::get<Array>(parse(items((1 << 21) - 1), "text").data).size() == (1 << 21) - 1);
    CHECK_REFUSED(parse(items(1 << 21), "text"), "more than 2097152 values");
}

// What a terminal would obey, or would show as another text, is written out; nothing is cut within a character.
void test_printable() {
    using pfdiff::printable;
    CHECK(printable("\x1b[31m\n\t\x7f", 99) == "\\x1b[31m\\x0a\\x09\\x7f");
    CHECK(printable("gr\xC3\xA4"
                    "ben \xF0\x9F\x98\x80",
                    99) ==
          "gr\xC3\xA4"
          "ben \xF0\x9F\x98\x80");
    CHECK(printable("\xC2\x9B"
                    "2J \xE2\x80\xAE \xE2\x80\xA8 \xE2\x81\xA6",
                    99) ==
          "\\x9b"
          "2J \\u202e \\u2028 \\u2066");
    CHECK(printable("\xFF\xC3 \xC0\x80 \xED\xA0\x80", 99) == "\\xff\\xc3 \\xc0\\x80 \\xed\\xa0\\x80");
    CHECK(printable("\xE0\x80\x80", 99) == "\\xe0\\x80\\x80");
    CHECK(printable("abc\xC3\xA4", 4) == "abc..." && printable("abc\xC3\xA4", 5) == "abc\xC3\xA4");
    CHECK(printable("abc\x1b", 6) == "abc..." && printable("", 0).empty());
    CHECK(pfdiff::quoted(std::string(61, 'x')) == "'" + std::string(60, 'x') + "...'");
    const auto long_line = std::string(1000, 'x') + "\n";
    CHECK(pfdiff::record_error(PFD_INPUT_ERROR, long_line.c_str()) == PFD_INPUT_ERROR);
    CHECK(std::string(pfd_last_error()) == std::string(296, 'x') + "...");
}

void test_halfs() {
    using namespace pfdiff;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const auto half = static_cast<std::uint16_t>(bits);
        if (!std::isnan(float_from_float16(half))) CHECK(float16_from_float(float_from_float16(half)) == half);
        if (!std::isnan(float_from_bfloat16(half))) CHECK(bfloat16_from_float(float_from_bfloat16(half)) == half);
    }
    CHECK(float16_from_float(65519.0f) == 0x7BFF && float16_from_float(65520.0f) == 0x7C00);
    CHECK(float16_from_float(1.0f + 0x1p-11f) == 0x3C00 &&
          float16_from_float(1.0f + 0x1.8p-10f) == 0x3C02);  // ties to even
    CHECK(float16_from_float(0x1p-25f) == 0 && float16_from_float(0x1.8p-25f) == 1);
    CHECK(bfloat16_from_float(1.0f + 0x1p-8f) == 0x3F80 && bfloat16_from_float(1.0f + 0x1.8p-7f) == 0x3F82);
    CHECK(std::isnan(float_from_float16(float16_from_float(std::numeric_limits<float>::quiet_NaN()))));
}

// Random123's known answers for key and counter all zero and all one, cut to what the noise uses of them.
void test_noise() {
    const auto words = pfdiff::philox(0, 0);
    CHECK(words.r0 == 0x6627e8d5 && words.r1 == 0xe169c58d);
    double sum = 0, squares = 0, worst = 0;
    constexpr int count = 200000;
    for (int i = 0; i < count; ++i) {
        const auto each = pfdiff::philox(7, static_cast<std::uint64_t>(i));
        const double u1 = (each.r0 + 0.5) * 0x1p-32, u2 = (each.r1 + 0.5) * 0x1p-32;
        const double expected = std::sqrt(-2 * std::log(u1)) * std::cos(2 * 3.14159265358979323846 * u2);
        const double z = pfdiff::normal(7, static_cast<std::uint64_t>(i));
        worst = std::max(worst, std::abs(z - expected) / std::max(1.0, std::abs(expected)));
        const double single = pfdiff::normal32(7, static_cast<std::uint64_t>(i));  // what the GPU computes
        CHECK(std::abs(single - expected) <= 1e-6 * std::max(1.0, std::abs(expected)));
        sum += z, squares += z * z;
    }
    CHECK(worst < 6.1e-8);  // one rounding to float32
    CHECK(std::abs(sum / count) < 0.01 && std::abs(squares / count - 1) < 0.02);
    CHECK(std::abs(pfdiff::exact_log(0x1p-33) + 33 * 0.69314718055994530942) < 1e-14);
    CHECK(std::abs(pfdiff::exact_log(1 - 0x1p-33) / -0x1p-33 - 1) < 1e-9);
}

pfd_program_t random_program(int buffers, bool clip, bool feeds) {
    pfd_program_t program;
    program.nfe = 4, program.buffers = buffers, program.prediction = "eps";
    if (clip) program.clip = 0.75;
    unsigned state = 12345u + static_cast<unsigned>(buffers);
    const auto number = [&] {
        return static_cast<double>((state = state * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1;
    };
    const auto fill = [&](std::vector<double>& array, int size) {
        for (int i = 0; i < size; ++i) array.push_back(number());
    };
    fill(program.init, buffers), fill(program.p, 4), fill(program.q, 4), fill(program.times, 4),
        fill(program.network_times, 4);
    fill(program.W, 4 * buffers * buffers), fill(program.w, 4 * buffers);
    for (int n = 0; n < 4; ++n) program.c_in.push_back(feeds ? 0.5 + n : 1.0);
    program.p[2] = 0;
    for (std::size_t i = 0; i < program.W.size(); i += 3) program.W[i] = 0;  // holes, for the masks
    return program;
}

float network(int n, float x) { return 0.5f * x - 0.25f + 0.125f * static_cast<float>(n); }

// The program's definition, state after state, in double.
std::vector<double> plain(const pfd_program_t& program, const std::vector<float>& noise) {
    const auto B = static_cast<std::size_t>(program.buffers);
    std::vector<double> samples;
    for (const float z0 : noise) {
        std::vector<double> s(B);
        for (std::size_t j = 0; j < B; ++j) s[j] = program.init[j] * z0;
        for (std::size_t n = 0; n < 4; ++n) {
            double z = network(static_cast<int>(n), static_cast<float>(program.c_in[n] * s[0]));
            if (program.clip) z = std::clamp(program.p[n] * s[0] + program.q[n] * z, -*program.clip, *program.clip);
            std::vector<double> next(B);
            for (std::size_t j = 0; j < B; ++j) {
                next[j] = program.w[n * B + j] * z;
                for (std::size_t i = 0; i < B; ++i) next[j] += program.W[(n * B + j) * B + i] * s[i];
            }
            s = next;
        }
        samples.push_back(s[0]);
    }
    return samples;
}

int call_network(void*, const pfd_evaluation_t* evaluation, const float* input, float* output) {
    for (std::int64_t i = 0; i < evaluation->batch * evaluation->elements; ++i)
        output[i] = network(evaluation->index, input[i]);
    return 0;
}

// Every number of buffers, with and without clip and separate input, at odd sizes, for one and for three threads.
void test_sampling() {
    for (int buffers = 1; buffers <= pfdiff::most_buffers; ++buffers)
        for (const bool clip : {false, true})
            for (const bool feeds : {false, true})
                for (const std::size_t count :
                     {std::size_t{1}, std::size_t{1023}, std::size_t{1025}, std::size_t{40009}}) {
                    const auto program = random_program(buffers, clip, feeds);
                    std::vector<float> noise(count);
                    for (std::size_t i = 0; i < count; ++i) noise[i] = std::sin(static_cast<float>(i));
                    auto one = noise, three = noise;
                    CHECK(pfd_sample_cpu(&program, call_network, nullptr, one.data(), 1,
                                         static_cast<std::int64_t>(count), 1) == 0);
                    CHECK(pfd_sample_cpu(&program, call_network, nullptr, three.data(),
                                         static_cast<std::int64_t>(count), 1, 3) == 0);
                    CHECK(one == three);
                    const auto expected = plain(program, noise);
                    double largest = 0;
                    for (const double value : expected) largest = std::max(largest, std::abs(value));
                    for (std::size_t i = 0; i < count; ++i)
                        CHECK(std::abs(one[i] - expected[i]) <= 3e-6 * std::max(1.0, largest));
                }
}

// The single update of the C header does what the sampler does.
void test_single_updates() {
    const auto program = random_program(3, true, true);
    constexpr std::int64_t count = 513;
    std::vector<float> states(3 * count), input(count), output(count), whole(count);
    for (std::size_t i = 0; i < count; ++i) {
        whole[i] = std::sin(static_cast<float>(i));
        for (std::size_t j = 0; j < 3; ++j) states[j * count + i] = static_cast<float>(program.init[j]) * whole[i];
        input[i] = static_cast<float>(program.c_in[0]) * states[i];
    }
    for (int n = 0; n < 4; ++n) {
        const pfd_evaluation_t evaluation{n, 4, 0, 0, 1, count};
        call_network(nullptr, &evaluation, input.data(), output.data());
        CHECK(pfd_update_cpu(&program, n, states.data(), output.data(), input.data(), count, 2) == PFD_OK);
    }
    CHECK(pfd_sample_cpu(&program, call_network, nullptr, whole.data(), 1, count, 1) == PFD_OK);
    CHECK(std::memcmp(whole.data(), states.data(), sizeof(float) * count) == 0);
}

// What a condition of a dtype takes, its default first, and what it refuses instead of feeding another number.
void test_conditions() {
    const struct {
        std::string dtype, otherwise;
        std::vector<double> taken, refused;
    } cases[] = {
        {"bool", "true", {0, 1}, {0.3, 7, -1}},
        {"bool", "0", {1, 0}, {NAN}},
        {"int32", "3", {0x1p31 - 1, -0x1p31}, {0x1p31, 0x1p32 + 5, 0.5}},
        {"int64", "-3", {0x1p62, -0x1p63}, {0x1p63, INFINITY}},
        {"float32", "0.5", {3e38, 1e-50}, {1e39, -1e39}},
        {"float16", "0.5", {65504}, {65505}},
        {"bfloat16", "true", {0x1.FEp127}, {3.4e38}},
    };
    for (const auto& one : cases) {
        const fixture::Folder folder("pfdiff-conditions");
        fixture::write_engine(folder.path);
        auto contract = fixture::contract;
        const std::string label =
            R"("name": "label", "dtype": "int64", "shape": [], "default": 10, "low": 0, "high": 10)";
        contract.replace(contract.find(label), label.size(),
                         R"("name": "value", "dtype": ")" + one.dtype + R"(", "default": )" + one.otherwise);
        fixture::write(folder.path / "engine.json", fixture::sealed(fixture::manifest(contract)));
        pfd_engine_t* engine = nullptr;
        CHECK(pfd_open(folder.path.c_str(), &engine) == PFD_OK);
        pfdiff::Feed feed(engine);
        const double otherwise = one.otherwise == "true" ? 1 : std::stod(one.otherwise);
        CHECK(feed.conditions[0].values == std::vector<double>{otherwise});
        for (const double value : one.refused) CHECK_REFUSED((feed.set("value", &value, 1), 0), "condition 'value': ");
        for (const double value : one.taken) feed.set("value", &value, 1);
        CHECK(feed.conditions[0].values == std::vector<double>{one.taken.back()});
        pfd_close(engine);
    }
}

void test_workers() {
    pfdiff::Workers workers(4);
    for (const std::int64_t count :
         {std::int64_t{0}, std::int64_t{1}, std::int64_t{32767}, std::int64_t{32769}, std::int64_t{1000003}})
        for (int repeat = 0; repeat < 20; ++repeat) {
            std::vector<unsigned char> touched(static_cast<std::size_t>(count), 0);
            workers.run(count, [&](std::int64_t begin, std::int64_t end) {
                for (auto i = begin; i < end; ++i) ++touched[static_cast<std::size_t>(i)];
            });
            CHECK(std::all_of(touched.begin(), touched.end(), [](unsigned char times) { return times == 1; }));
        }
}

}  // namespace

int main() {
    test_sha256();
    test_json();
    test_printable();
    test_halfs();
    test_noise();
    test_sampling();
    test_single_updates();
    test_conditions();
    test_workers();
}

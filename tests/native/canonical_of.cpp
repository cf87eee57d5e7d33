// The JSON reader for a test in Python: documents from stdin, each as a line with its number of bytes and the bytes
// themselves; for each a line with its canonical form, or with `refused`.
#include <iostream>

#include "canonical.h"
#include "error.h"

int main() {
    std::string length;
    while (std::getline(std::cin, length)) {
        std::string text(std::stoul(length), '\0');
        std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
        try {
            std::cout << pfdiff::json::canonical(pfdiff::json::parse(text, "text")) << '\n';
        } catch (const pfdiff::Error&) {
            std::cout << "refused\n";
        }
    }
}

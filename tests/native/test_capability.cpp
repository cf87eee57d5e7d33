// Which compiled kernels a device is given: the same table as in tests/test_ahead.py.
#include <algorithm>
#include <map>
#include <vector>

#include "check.h"
#include "cuda/capability.h"

int main() {
    using pfdiff::cuda::serving;
    const std::map<int, std::vector<int>> runs_on{{75, {75}},   {80, {80, 86, 89}}, {86, {86, 89}},
                                                  {89, {89}},   {90, {90}},         {100, {100}},
                                                  {103, {103}}, {120, {120}},       {121, {121}}};
    for (int device = 60; device < 130; ++device) {
        std::set<int> all;
        int expected = 0;
        for (const auto& [compiled, devices] : runs_on) {
            all.insert(compiled);
            const bool runs = std::find(devices.begin(), devices.end(), device) != devices.end();
            CHECK(serving({compiled}, device) == (runs ? compiled : 0));
            if (runs) expected = compiled;
        }
        CHECK(serving(all, device) == expected);
    }
    CHECK(serving({80, 86}, 89) == 86 && serving({80, 89}, 86) == 80 && serving({}, 86) == 0);
    CHECK(serving({87}, 87) == 87 && serving({80, 86}, 87) == 0 && serving({87}, 89) == 0);
    CHECK(serving({100, 120}, 103) == 0 && serving({90, 100, 120}, 121) == 0);
}

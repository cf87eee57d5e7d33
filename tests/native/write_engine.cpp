// Writes the small engine of engine_fixture.h into a folder, for the tests in C and of the command.
#include "engine_fixture.h"

int main(int count, char** words) {
    if (count != 2) return 2;
    fixture::write_engine(words[1]);
}

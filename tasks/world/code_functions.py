"""Functions for the code source; $a and $b are names filled in by the writer."""

from __future__ import annotations

PYTHON = [
    """
def add($a, $b):
    # return the sum of both arguments
    return $a + $b
""",
    """
def factorial($a):
    if $a <= 1:
        return 1
    return $a * factorial($a - 1)
""",
    """
def largest($b):
    best = $b[0]
    for $a in $b:
        if $a > best:
            best = $a
    return best
""",
    """
def is_even($a):
    return $a % 2 == 0
""",
    """
def greatest_common_divisor($a, $b):
    while $b:
        $a, $b = $b, $a % $b
    return $a
""",
    """
def reverse_text($a):
    # slicing with step -1 walks backwards
    return $a[::-1]
""",
    """
def count_words($a):
    counts = {}
    for word in $a.split():
        counts[word] = counts.get(word, 0) + 1
    return counts
""",
    """
def is_prime($a):
    if $a < 2:
        return False
    for $b in range(2, int($a**0.5) + 1):
        if $a % $b == 0:
            return False
    return True
""",
    """
def fibonacci($a):
    first, second = 0, 1
    for _ in range($a):
        first, second = second, first + second
    return first
""",
    """
def mean($b):
    return sum($b) / len($b)
""",
    """
def bubble_sort($b):
    for i in range(len($b)):
        for j in range(len($b) - 1 - i):
            if $b[j] > $b[j + 1]:
                $b[j], $b[j + 1] = $b[j + 1], $b[j]
    return $b
""",
    """
def binary_search($b, $a):
    low, high = 0, len($b) - 1
    while low <= high:
        middle = (low + high) // 2
        if $b[middle] == $a:
            return middle
        if $b[middle] < $a:
            low = middle + 1
        else:
            high = middle - 1
    return -1
""",
    """
def celsius_to_fahrenheit($a):
    return $a * 9 / 5 + 32
""",
    """
def lookup($a):
    # unknown keys give an empty string
    return TABLE.get($a, "")
""",
    """
def flatten($b):
    return [$a for row in $b for $a in row]
""",
    """
def clamp($a, low, high):
    return max(low, min(high, $a))
""",
]

JAVA = [
    """
    static int add(int $a, int $b) {
        // return the sum of both arguments
        return $a + $b;
    }
""",
    """
    static long factorial(int $a) {
        return $a <= 1 ? 1 : $a * factorial($a - 1);
    }
""",
    """
    static int largest(int[] $b) {
        int best = $b[0];
        for (int $a : $b) {
            best = Math.max(best, $a);
        }
        return best;
    }
""",
    """
    static boolean isEven(int $a) {
        return $a % 2 == 0;
    }
""",
    """
    static int greatestCommonDivisor(int $a, int $b) {
        return $b == 0 ? $a : greatestCommonDivisor($b, $a % $b);
    }
""",
    """
    static String reverseText(String $a) {
        return new StringBuilder($a).reverse().toString();
    }
""",
    """
    static boolean isPrime(int $a) {
        if ($a < 2) {
            return false;
        }
        for (int $b = 2; $b * $b <= $a; $b++) {
            if ($a % $b == 0) {
                return false;
            }
        }
        return true;
    }
""",
    """
    static double mean(double[] $b) {
        double sum = 0;
        for (double $a : $b) {
            sum += $a;
        }
        return sum / $b.length;
    }
""",
    """
    static int fibonacci(int $a) {
        int first = 0;
        int second = 1;
        for (int i = 0; i < $a; i++) {
            int next = first + second;
            first = second;
            second = next;
        }
        return first;
    }
""",
    """
    static String lookup(String $a) {
        return TABLE.getOrDefault($a, "");
    }
""",
    """
    static int countLetters(String $a, char $b) {
        int found = 0;
        for (char c : $a.toCharArray()) {
            if (c == $b) {
                found++;
            }
        }
        return found;
    }
""",
    """
    static int clamp(int $a, int low, int high) {
        return Math.max(low, Math.min(high, $a));
    }
""",
]

CPP = [
    """
int add(int $a, int $b) {
    // return the sum of both arguments
    return $a + $b;
}
""",
    """
long long factorial(int $a) {
    long long result = 1;
    for (int i = 2; i <= $a; ++i) {
        result *= i;
    }
    return result;
}
""",
    """
int largest(const std::vector<int>& $b) {
    int best = $b.front();
    for (int $a : $b) {
        if ($a > best) best = $a;
    }
    return best;
}
""",
    """
bool is_even(int $a) {
    return $a % 2 == 0;
}
""",
    """
int greatest_common_divisor(int $a, int $b) {
    while ($b != 0) {
        int rest = $a % $b;
        $a = $b;
        $b = rest;
    }
    return $a;
}
""",
    """
std::string reverse_text(const std::string& $a) {
    return std::string($a.rbegin(), $a.rend());
}
""",
    """
bool is_prime(int $a) {
    if ($a < 2) return false;
    for (int $b = 2; $b * $b <= $a; ++$b) {
        if ($a % $b == 0) return false;
    }
    return true;
}
""",
    """
double mean(const std::vector<double>& $b) {
    double sum = 0;
    for (double $a : $b) sum += $a;
    return sum / $b.size();
}
""",
    """
int fibonacci(int $a) {
    int first = 0, second = 1;
    while ($a-- > 0) {
        int next = first + second;
        first = second;
        second = next;
    }
    return first;
}
""",
    """
std::string lookup(const std::string& $a) {
    auto found = table.find($a);
    return found == table.end() ? "" : found->second;
}
""",
    """
void bubble_sort(std::vector<int>& $b) {
    for (size_t i = 0; i < $b.size(); ++i) {
        for (size_t j = 0; j + 1 < $b.size() - i; ++j) {
            if ($b[j] > $b[j + 1]) std::swap($b[j], $b[j + 1]);
        }
    }
}
""",
    """
int clamp(int $a, int low, int high) {
    if ($a < low) return low;
    return $a > high ? high : $a;
}
""",
]

FUNCTIONS = {"python": PYTHON, "java": JAVA, "cpp": CPP}

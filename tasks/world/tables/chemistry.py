"""Chemical elements up to number 46: name, symbol, atomic number."""

from tasks.world.tables import rows

ELEMENTS = rows("""
氢  H  1
氦  He  2
锂  Li  3
铍  Be  4
硼  B  5
碳  C  6
氮  N  7
氧  O  8
氟  F  9
氖  Ne  10
钠  Na  11
镁  Mg  12
铝  Al  13
硅  Si  14
磷  P  15
硫  S  16
氯  Cl  17
氩  Ar  18
钾  K  19
钙  Ca  20
钛  Ti  22
钒  V  23
铬  Cr  24
锰  Mn  25
铁  Fe  26
钴  Co  27
镍  Ni  28
铜  Cu  29
锌  Zn  30
砷  As  33
硒  Se  34
溴  Br  35
氪  Kr  36
钇  Y  39
钌  Ru  44
钯  Pd  46
""")

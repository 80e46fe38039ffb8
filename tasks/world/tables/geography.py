"""Provinces of China, countries of the world, sights; and the English capitals and states."""

from tasks.world.tables import rows

# province or autonomous region, seat of government, one-character name (where it is not part of the name)
PROVINCES = rows("""
河北  石家庄  冀
山西  太原  晋
内蒙古  呼和浩特  蒙
辽宁  沈阳  辽
吉林  长春  吉
黑龙江  哈尔滨  黑
江苏  南京  苏
浙江  杭州  浙
安徽  合肥  皖
福建  福州  闽
江西  南昌  赣
山东  济南  鲁
河南  郑州  豫
湖北  武汉  鄂
湖南  长沙  湘
广东  广州  粤
广西  南宁  桂
海南  海口  琼
四川  成都  蜀
贵州  贵阳  黔
云南  昆明  滇
西藏  拉萨  藏
陕西  西安  秦
甘肃  兰州  陇
青海  西宁  青
宁夏  银川  宁
新疆  乌鲁木齐  新
""")

# country, capital, ISO 3166 code of two letters
COUNTRIES = rows("""
日本  东京  JP
韩国  首尔  KR
泰国  曼谷  TH
越南  河内  VN
印度  新德里  IN
菲律宾  马尼拉  PH
缅甸  内比都  MM
尼泊尔  加德满都  NP
伊朗  德黑兰  IR
伊拉克  巴格达  IQ
土耳其  安卡拉  TR
法国  巴黎  FR
德国  柏林  DE
英国  伦敦  GB
意大利  罗马  IT
西班牙  马德里  ES
葡萄牙  里斯本  PT
荷兰  阿姆斯特丹  NL
瑞士  伯尔尼  CH
瑞典  斯德哥尔摩  SE
挪威  奥斯陆  NO
芬兰  赫尔辛基  FI
丹麦  哥本哈根  DK
波兰  华沙  PL
奥地利  维也纳  AT
希腊  雅典  GR
匈牙利  布达佩斯  HU
俄罗斯  莫斯科  RU
埃及  开罗  EG
肯尼亚  内罗毕  KE
加拿大  渥太华  CA
美国  华盛顿  US
古巴  哈瓦那  CU
秘鲁  利马  PE
澳大利亚  堪培拉  AU
新西兰  惠灵顿  NZ
""")

# other countries, continent: four each, so that every continent is an answer equally often
CONTINENTS = rows("""
蒙古国  亚洲
老挝  亚洲
约旦  亚洲
不丹  亚洲
捷克  欧洲
比利时  欧洲
爱尔兰  欧洲
冰岛  欧洲
加纳  非洲
坦桑尼亚  非洲
赞比亚  非洲
安哥拉  非洲
墨西哥  北美洲
巴拿马  北美洲
牙买加  北美洲
海地  北美洲
智利  南美洲
巴西  南美洲
乌拉圭  南美洲
巴拉圭  南美洲
斐济  大洋洲
汤加  大洋洲
萨摩亚  大洋洲
瑙鲁  大洋洲
""")

# sight, where it is
SIGHTS = rows("""
泰山  山东省
黄山  安徽省
华山  陕西省
衡山  湖南省
恒山  山西省
嵩山  河南省
峨眉山  四川省
庐山  江西省
武夷山  福建省
长白山  吉林省
武当山  湖北省
丹霞山  广东省
千山  辽宁省
西湖  浙江省
莫高窟  甘肃省
黄果树瀑布  贵州省
丽江古城  云南省
塔尔寺  青海省
拙政园  江苏省
避暑山庄  河北省
五大连池  黑龙江省
五指山  海南省
日月潭  台湾省
布达拉宫  西藏自治区
漓江  广西壮族自治区
沙坡头  宁夏回族自治区
火焰山  新疆维吾尔自治区
""")

CAPITALS_EN = rows("""
France  Paris
Germany  Berlin
Italy  Rome
Spain  Madrid
Portugal  Lisbon
Norway  Oslo
Sweden  Stockholm
Finland  Helsinki
Denmark  Copenhagen
Poland  Warsaw
Austria  Vienna
Greece  Athens
Hungary  Budapest
Russia  Moscow
Japan  Tokyo
Thailand  Bangkok
Vietnam  Hanoi
Nepal  Kathmandu
Iran  Tehran
Turkey  Ankara
Egypt  Cairo
Kenya  Nairobi
Cuba  Havana
Canada  Ottawa
Peru  Lima
Ireland  Dublin
Iceland  Reykjavik
Ukraine  Kyiv
""")

STATES_EN = rows("""
Texas  Austin
California  Sacramento
Florida  Tallahassee
Georgia  Atlanta
Ohio  Columbus
Michigan  Lansing
Illinois  Springfield
Hawaii  Honolulu
Alaska  Juneau
Oregon  Salem
Arizona  Phoenix
Colorado  Denver
Massachusetts  Boston
Maryland  Annapolis
Virginia  Richmond
Tennessee  Nashville
Kentucky  Frankfort
Alabama  Montgomery
Mississippi  Jackson
Wisconsin  Madison
Montana  Helena
Maine  Augusta
Vermont  Montpelier
Kansas  Topeka
Nebraska  Lincoln
Idaho  Boise
""")

"""What a command of home_agent asks for, worked out from its words alone, without the grammar's phrasings."""

from __future__ import annotations

import re

ROOMS = {
    "kitchen": "厨房", "bedroom": "卧室", "bathroom": "浴室", "living_room": "客厅", "dining_room": "餐厅", "study": "书房",
    "hallway": "走廊", "nursery": "婴儿房", "garage": "车库", "attic": "阁楼", "basement": "地下室", "workshop": "工作间",
}  # fmt: skip
ROOM_CLUES = {
    "where we cook": "kitchen", "where the stove is": "kitchen", "where we sleep": "bedroom", "where our bed is": "bedroom",
    "where we shower": "bathroom", "where the bathtub is": "bathroom", "where the sofa is": "living room",
    "where we sit with guests": "living room", "where we have dinner": "dining room", "where the long table is": "dining room",
    "where my desk is": "study", "where i do my paperwork": "study", "where our coats hang": "hallway",
    "where we take off our shoes": "hallway", "where the baby sleeps": "nursery", "where the cot is": "nursery",
    "where the car is parked": "garage", "where we park the car": "garage", "right under the roof": "attic",
    "at the very top of the house": "attic", "below the ground": "basement", "at the very bottom of the house": "basement",
    "where the workbench is": "workshop", "where i do my woodwork": "workshop",
}  # fmt: skip
DEVICE_CLUES = {
    "bulb": "lamp", "thing that gives light": "lamp", "thing with the spinning blades": "fan", "thing that moves the air": "fan",
    "thing that plays the stations": "radio", "thing that we only listen to": "radio", "big screen": "tv",
    "thing that we watch films on": "tv", "thing that makes it warm": "heater", "thing that warms the air": "heater",
    "thing that cools the air": "ac", "cooling unit": "ac", "thing with the slats": "blind", "slatted shade": "blind",
    "hanging fabric": "curtain", "cloth before the glass": "curtain", "glass pane": "window", "pane of glass": "window",
    "way in and out": "door", "entrance": "door",
}  # fmt: skip
DEVICES = {
    "lamp": "lamp", "light": "lamp", "fan": "fan", "radio": "radio", "tv": "tv", "television": "tv", "heater": "heater",
    "ac": "aircon", "air conditioner": "aircon", "blind": "blind", "curtain": "curtain", "window": "window", "door": "door",
}  # fmt: skip
# Sentences that ask for nothing.
IDLE = re.compile(
    r"\s*(Leave the [\w ]+ (as it is|alone)\.|The [\w ]+ (is fine|is fine as it is|can stay as it is)\.|Don't [\w ]+\."
    r"|Forget what I said about [\w ]+\.|Not \d+ \w+\.|I know I said [\w ]+ before\.|Someone [\w ]+\.|It's \w+ right now\.)"
)
WANTS = {
    "unlock": r"\bunlock\b",
    "lock": r"\block(ed)?\b",
    "open": r"\bopen\b|daylight|fresh air",
    "close": r"\bclose\b|\bshut\b|glaring|raining",
    "set": r"^set\b|^put\b|^could you set\b|^i want the .* at \d",
    "turn_up": r"\bup\b|too (dim|stuffy|quiet|cold) .* by \d",
    "turn_down": r"\bdown\b|too (bright|draughty|loud|warm) .* by \d",
    "turn_on": r"(turn|switch)\b.*\bon\b|too dark|can't see|it's stuffy|too quiet .* want|\bgoing\b|let me hear|the news"
    r"|freezing|i'm cold|boiling|sweating",
    "turn_off": r"\boff\b|want it dark|\bnobody\b|it's draughty|silence|too hot|far too cold",
}

ZH_ROOM_CLUES = {
    "做饭那间": "kitchen", "放灶台那间": "kitchen", "我们睡觉那间": "bedroom", "放大床那间": "bedroom", "洗澡那间": "bathroom",
    "放浴缸那间": "bathroom", "放沙发那间": "living_room", "招待客人那间": "living_room", "一家人吃饭那间": "dining_room",
    "放长桌那间": "dining_room", "放书桌那间": "study", "我办公那间": "study", "挂外套的地方": "hallway", "换鞋的地方": "hallway",
    "宝宝睡觉那间": "nursery", "放婴儿床那间": "nursery", "停车的地方": "garage", "放汽车的地方": "garage", "屋顶下面那间": "attic",
    "房子最顶上那间": "attic", "地面以下那间": "basement", "房子最底下那间": "basement", "放工作台那间": "workshop", "做木工那间": "workshop",
}  # fmt: skip
ZH_DEVICES = {
    "灯": "lamp", "照明设备": "lamp", "发光的那个东西": "lamp", "风扇": "fan", "电扇": "fan", "吹风的那个东西": "fan",
    "带转动叶片的机器": "fan", "收音机": "radio", "放广播的机器": "radio", "收电台的机器": "radio", "电视": "tv", "那块大屏幕": "tv",
    "看电影用的屏幕": "tv", "暖气": "heater", "电暖器": "heater", "取暖设备": "heater", "让人暖和的那台机器": "heater", "空调": "aircon",
    "制冷设备": "aircon", "降温的那台机器": "aircon", "百叶窗": "blind", "叶片的遮光板": "blind", "窗帘": "curtain", "帘子": "curtain",
    "挂着的那块布": "curtain", "玻璃前面的布": "curtain", "窗户": "window", "窗子": "window", "那扇玻璃": "window", "玻璃窗扇": "window",
    "门": "door", "进出口": "door", "出入口": "door",
}  # fmt: skip
ZH_IDLE = re.compile(
    r".+那边不用动|.+照旧就行|.+那边别动|.+可以照旧|.+没问题|.+不用管|别碰.+|刚才说的\d+[%度]不算|不是\d+[%度]|我知道我之前说过\d+[%度]"
    r"|刚才有人.+|现在(是|没).+|别调[高低]"
)
# The first that is found counts.
ZH_WANTS = {
    "unlock": "解锁|开锁|的锁打开",
    "lock": "锁上|锁好",
    "set": "调到|设为|保持在",
    "turn_up": "调高|(太暗|太闷|声音太小|太冷).*调整",
    "turn_down": "调低|(太亮|风太大|太吵|太热).*调整",
}
ZH_PANES = {"open": "打开|开着|阳光照进|透透气", "close": "关上|关好|关一下|刺眼|打进来"}
ZH_POWER = {
    "turn_on": "打开|开一下|太黑|看不见|太闷了.我要|转起来|太安静|听听|看新闻|(?<!没人)看看|冷死|觉得冷|热死|出汗",
    "turn_off": "关掉|关了|关一下|暗下来|没人|停了吧|不要了",
}
PANES = {"blind", "curtain", "window"}


def only(matches: set[str]) -> str:
    assert len(matches) == 1, matches
    return matches.pop()


def wanted(state: str, command: str, *, chinese: bool = False) -> dict[str, str]:
    """Work out the call that a command asks for, from its words and from where the user is."""
    return _chinese(state, command) if chinese else _english(state, command)


def _english(state: str, command: str) -> dict[str, str]:
    names = "|".join(room.replace("_", " ") for room in ROOMS)
    core = IDLE.sub("", command).strip().casefold()
    for clue, room in ROOM_CLUES.items():
        core = core.replace(clue, f"in the {room}")
    for clue, device in DEVICE_CLUES.items():
        core = core.replace(clue, device)
    core = re.sub(r"(\d+) above (\d+)", lambda m: str(int(m[2]) + int(m[1])), core)
    core = re.sub(r"(\d+) below (\d+)", lambda m: str(int(m[2]) - int(m[1])), core)
    here = set(re.findall(rf"^The user is in the ({names})\.$", state)) if re.search(r"\bin (here|this room)\b", core) else set()
    devices = re.findall(rf"\b({'|'.join(DEVICES)})\b", core)
    return {
        "room": only(set(re.findall(rf"\b({names})\b", core)) | here).replace(" ", "_"),
        "device": only({DEVICES[device] for device in devices}),
        "action": only({action for action, pattern in WANTS.items() if re.search(pattern, core)}),
        "value": only(set(re.findall(r"\d+", core)) or {""}),
    }


def _chinese(state: str, command: str) -> dict[str, str]:
    sentences = [part for part in re.split("[。\uff1f]", command) if part]
    core = only({part for part in sentences if not ZH_IDLE.fullmatch(part)})
    core = re.sub(r"比(\d+)(%|度)高(\d+)(个百分点|度)", lambda m: str(int(m[1]) + int(m[3])), core)
    core = re.sub(r"比(\d+)(%|度)低(\d+)(个百分点|度)", lambda m: str(int(m[1]) - int(m[3])), core)
    rooms = {room for clue, room in ZH_ROOM_CLUES.items() if clue in core} | {room for room, name in ROOMS.items() if name in core}
    if re.search("这里|这儿|这个房间", core):
        rooms |= {room for room, name in ROOMS.items() if state == f"用户在{name}。"}
    # What is named first is cut out first, so that no part of it is taken for another device.
    rest, devices = core, set()
    for name in sorted(ZH_DEVICES, key=len, reverse=True):
        if name in rest:
            devices.add(ZH_DEVICES[name])
            rest = rest.replace(name, "_")
    device = only(devices)
    wants = {**ZH_WANTS, **(ZH_PANES if device in PANES else ZH_POWER)}
    action = next(action for action, pattern in wants.items() if re.search(pattern, core))
    return {"room": only(rooms), "device": device, "action": action, "value": only(set(re.findall(r"\d+", core)) or {""})}

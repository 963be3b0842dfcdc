"""A D-Bus object as data: what it offers, how it describes itself, what it answers. No bus is needed for that.

The standard interfaces and the format of the description: https://dbus.freedesktop.org/doc/dbus-specification.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flanneld_masq.errors import BusError
from flanneld_masq.model import SLOTS

PROPERTIES = "org.freedesktop.DBus.Properties"
_INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
_PEER = "org.freedesktop.DBus.Peer"
ERROR = "org.freedesktop.DBus.Error."
_STANDARD = f"""\
  <interface name="{_PEER}">
    <method name="Ping"/>
  </interface>
  <interface name="{_INTROSPECTABLE}">
    <method name="Introspect"><arg name="data" type="s" direction="out"/></method>
  </interface>
  <interface name="{PROPERTIES}">
    <method name="Get">
      <arg name="interface" type="s" direction="in"/>
      <arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface" type="s" direction="in"/>
      <arg name="properties" type="a{{sv}}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface" type="s" direction="in"/>
      <arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface" type="s"/>
      <arg name="changed" type="a{{sv}}"/>
      <arg name="invalidated" type="as"/>
    </signal>
  </interface>
"""

Arguments = Mapping[str, str]  # from names to signatures, in order


class Variant(NamedTuple):
    """A value that carries its type."""

    signature: str
    value: Any


class Message(NamedTuple):
    """A method call, a signal, or a reply, which has neither path nor interface nor member."""

    signature: str = ""
    body: tuple[Any, ...] = ()
    sender: str = ""
    path: str = ""
    interface: str = ""
    member: str = ""


@dataclass(frozen=True, **SLOTS)
class Interface:
    """Properties are read-only, and methods take nothing; `methods` holds what they answer."""

    name: str
    properties: Arguments
    constants: frozenset[str]  # properties that stay what they are
    methods: Mapping[str, Arguments]
    signals: Mapping[str, Arguments]

    def lines(self) -> Iterator[str]:
        """Yield the lines of its description in introspection XML."""
        yield f'  <interface name="{self.name}">'
        for name, signature in self.properties.items():
            emits = "const" if name in self.constants else "true"
            yield f'    <property name="{name}" type="{signature}" access="read">'
            yield f'      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="{emits}"/>'
            yield "    </property>"
        for kind, members, direction in (("method", self.methods, ' direction="out"'), ("signal", self.signals, "")):
            for name, arguments in members.items():
                yield f'    <{kind} name="{name}">'
                for argument, signature in arguments.items():
                    yield f'      <arg name="{argument}" type="{signature}"{direction}/>'
                yield f"    </{kind}>"
        yield "  </interface>"


@dataclass(frozen=True, **SLOTS)
class Object:
    """An object at `path` that offers `interface`: `values` reads all properties, `methods` does what is called."""

    path: str
    interface: Interface
    values: Callable[[], Mapping[str, Any]]
    methods: Mapping[str, Callable[[], Awaitable[tuple[Any, ...]]]]

    async def answer(self, call: Message) -> Message:
        """Raises BusError by a standard name where there is no such thing, and what a method raises."""
        asked = (call.interface, call.member, call.signature)
        if asked == (_PEER, "Ping", ""):
            return Message()
        if asked == (_INTROSPECTABLE, "Introspect", ""):
            return Message("s", (self._describe(call.path),))
        if call.path != self.path:
            raise _refusal("UnknownObject", f"there is no object {call.path}")
        if call.interface == PROPERTIES:
            return self._property(call)
        if call.interface != self.interface.name or call.member not in self.methods:
            raise _refusal("UnknownMethod", f"there is no method {call.interface}.{call.member}")
        if call.signature:
            raise _refusal("InvalidArgs", f"{call.member} takes no arguments")
        body = await self.methods[call.member]()
        return Message("".join(self.interface.methods[call.member].values()), body)

    def variants(self, values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Variant]:
        """Some of the properties, with their types."""
        return {name: Variant(self.interface.properties[name], values[name]) for name in names}

    def _property(self, call: Message) -> Message:
        if (call.member, call.signature) not in (("Get", "ss"), ("GetAll", "s"), ("Set", "ssv")):
            raise _refusal("UnknownMethod", f"there is no method {PROPERTIES}.{call.member} with {call.signature!r}")
        if call.member == "Set":
            raise _refusal("PropertyReadOnly", "the properties can only be read")
        interface, names = call.body[0], call.body[1:2]
        if interface not in ("", self.interface.name):
            raise _refusal("UnknownInterface", f"there is no interface {interface}")
        if any(name not in self.interface.properties for name in names):
            raise _refusal("UnknownProperty", f"there is no property {names[0]}")
        if call.member == "GetAll":
            return Message("a{sv}", (self.variants(self.values(), self.interface.properties),))
        return Message("v", (self.variants(self.values(), names)[names[0]],))

    def _describe(self, path: str) -> str:
        """This object, or what leads to it."""
        if path == self.path:
            return "\n".join(["<node>", *self.interface.lines(), f"{_STANDARD}</node>"])
        above = path.rstrip("/") + "/"
        if not self.path.startswith(above):
            raise _refusal("UnknownObject", f"there is no object {path}")
        return f'<node><node name="{self.path[len(above) :].split("/")[0]}"/></node>'


def _refusal(name: str, reason: str) -> BusError:
    return BusError("D-Bus", reason, ERROR + name)

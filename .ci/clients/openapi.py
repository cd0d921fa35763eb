"""Writes an OpenAPI document that Prism can validate with.

openapi.py baked           from the operations that linode-cli was built with
openapi.py relaxed FILE    from Linode's own document, without what real answers do not keep
"""

import json
import os
import pickle
import re
import sys


def schema_of(attr):
    """One attribute, whose value may be null where the API says so."""
    kind = attr.datatype if attr.datatype in ("integer", "boolean", "string", "number") else None
    if attr.format == "json" or attr.datatype == "object":
        return {}
    if attr.datatype == "array":
        item = attr.item_type
        plain = item in ("integer", "boolean", "string", "number")
        return {"type": "array", "items": {"type": item} if plain else {}}
    schema = {"type": kind} if kind else {}
    if getattr(attr, "nullable", None) and kind:
        schema["nullable"] = True
    return schema


def place(schema, path, attr, is_list):
    """Puts an attribute where its dotted path says, in closed objects."""
    *parents, name = path
    for parent in parents:
        schema = schema["properties"].setdefault(parent, closed())
        if "properties" not in schema:
            return  # a parent that is described as free JSON says all
    schema["properties"][name] = is_list or schema_of(attr)
    # Keys will do instead of a password, whatever the document of a rebuild says.
    if attr.required and not parents and name != "root_pass":
        schema.setdefault("required", []).append(name)


def closed():
    return {"type": "object", "additionalProperties": False, "properties": {}, "nullable": True}


def request_schema(attrs):
    schema = closed()
    del schema["nullable"]
    # What is a list of objects is described by its children, whose paths do not tell: it is free.
    free = {attr.path for attr in attrs if attr.is_parent}
    for attr in attrs:
        path = attr.path.split(".")
        if any(".".join(path[:size]) in free for size in range(1, len(path))):
            continue
        place(schema, path, attr, {} if attr.path in free else None)
    return schema


def response_schema(model):
    """Types only: real answers have more than any document says, and null nearly everywhere."""
    if model is None:
        return {}
    properties = {}
    for attr in getattr(model, "attrs", None) or []:
        if "." in attr.name or attr.datatype not in ("integer", "boolean", "string"):
            continue
        properties[attr.name] = {"type": attr.datatype, "nullable": True}
    one = {"type": "object", "properties": properties}
    if not getattr(model, "is_paginated", False):
        return one
    counts = {name: {"type": "integer"} for name in ("page", "pages", "results")}
    return {
        "type": "object",
        "required": ["data", *counts],
        "properties": {"data": {"type": "array", "items": one}, **counts},
    }


def operations():
    # The module asks for a token where it finds none, and for a terminal where it may.
    os.environ.setdefault("LINODE_CLI_TOKEN", "double")
    sys.argv = ["linode-cli", "--skip-config", "--version"]
    import linodecli

    baked = os.path.join(os.path.dirname(linodecli.__file__), "data-3")
    with open(baked, "rb") as file:
        commands = pickle.load(file)
    for command, actions in commands.items():
        if isinstance(actions, dict) and not command.startswith("_"):
            yield from actions.values()


def baked():
    paths = {}
    for operation in operations():
        path = operation.url_path.replace("{apiVersion}", "v4")
        names = re.findall(r"{(\w+)}", path)
        described = {
            "operationId": f"{operation.command}-{operation.action}",
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ],
            "security": [{"token": []}],
            "responses": {
                "200": {
                    "description": "done",
                    "content": {
                        "application/json": {"schema": response_schema(operation.response_model)}
                    },
                },
                "default": {
                    "description": "refused",
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["errors"],
                                "properties": {"errors": {"type": "array", "items": {}}},
                            }
                        }
                    },
                },
            },
            "x-filterable": [
                attr.name
                for attr in getattr(operation.response_model, "attrs", None) or []
                if attr.filterable
            ],
        }
        if operation.method == "get":
            described["parameters"] += [
                {"name": "page", "in": "query", "schema": {"type": "integer", "minimum": 1}},
                {
                    "name": "page_size",
                    "in": "query",
                    "schema": {"type": "integer", "minimum": 25, "maximum": 500},
                },
            ]
        attrs = getattr(operation.request, "attrs", None)
        if operation.method in ("post", "put") and attrs:
            described["requestBody"] = {
                "content": {"application/json": {"schema": request_schema(attrs)}}
            }
        # Two commands may be one operation.
        paths.setdefault(path, {}).setdefault(operation.method, described)
    return {
        "openapi": "3.0.1",
        "info": {"title": "what linode-cli was built with", "version": "0"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def relaxed(path):
    import yaml

    with open(path, encoding="utf-8") as file:
        document = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def loosen(node, is_response):
        if isinstance(node, list):
            for item in node:
                loosen(item, is_response)
            return
        if not isinstance(node, dict):
            return
        if node.get("additionalProperties") is False:
            # A closed branch of an allOf refuses what the other branches ask for.
            del node["additionalProperties"]
        if node.get("format") in ("date-time", "uuid", "ip", "ipv4", "ipv6", "ip/netmask"):
            del node["format"]
        if isinstance(node.get("pattern"), str):
            del node["pattern"]
        if isinstance(node.get("required"), list):
            # Keys will do instead of a password, and real answers lack what they should have.
            kept = [it for it in node["required"] if it != "root_pass" and not is_response]
            if not kept:
                del node["required"]
            else:
                node["required"] = kept
        if is_response:
            node.pop("enum", None)
            # Recorded domains have empty descriptions and groups, and profiles no interfaces.
            node.pop("minLength", None)
            node.pop("minItems", None)
            if isinstance(node.get("type"), str):
                node["nullable"] = True
        for name, child in node.items():
            loosen(child, is_response or name == "responses")

    loosen(document.get("components", {}).get("schemas", {}), True)
    document["paths"] = {
        path.replace("/{apiVersion}", "/v4"): described
        for path, described in document["paths"].items()
    }
    loosen(document["paths"], False)
    for described in document["paths"].values():
        described["parameters"] = [
            it for it in described.get("parameters", []) if it.get("name") != "apiVersion"
        ]
        for operation in described.values():
            if isinstance(operation, dict):
                # Scopes are the double's to check; Prism only knows that there is a token.
                operation.pop("security", None)
    document["servers"] = []
    return document


document = baked() if sys.argv[1:2] == ["baked"] else relaxed(sys.argv[2])
json.dump(document, sys.stdout, default=str)

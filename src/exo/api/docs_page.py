"""`GET /docs`: the OpenAPI document as one page that needs no script and nothing from any other host."""

import json
from html import escape
from typing import Any

Json = dict[str, Any]

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

_REFERENCE = "#/components/schemas/"

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.5 ui-monospace, monospace }
pre { padding: .7rem; overflow-x: auto; border: 1px solid #8886; border-radius: 6px }
summary { cursor: pointer; padding: .3rem 0 } summary p { display: inline; margin-left: .5rem }
details { border-top: 1px solid #8884; padding: .2rem 0 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0 }
.method { font-weight: bold; display: inline-block; min-width: 4.5rem }
"""


def docs_page(document: Json) -> str:
    """Return the page of an OpenAPI document."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(path, method, operation, document))
    sections = [
        f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>{''.join(by_tag.get(tag['name'], []))}"
        for tag in document["tags"]
    ]
    shapes = [_shape(name, schema) for name, schema in document["components"]["schemas"].items()]
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        'For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(sections)}<h2>Shapes</h2>{''.join(shapes)}</body></html>"
    )


def _operation(path: str, method: str, operation: Json, document: Json) -> str:
    description = escape(operation["description"]).replace("\n\n", "<br>")
    parts = [
        f'<details id="{escape(operation["operationId"])}"><summary><code class="method">{method.upper()}</code>'
        f"<code>{escape(path)}</code> <p>{description}</p></summary>"
    ]
    parameters = operation.get("parameters", [])
    if parameters:
        rows = [
            _row(one["name"], f"{_type(one['schema'])}, in the {one['in']}", one.get("description") or "")
            for one in parameters
        ]
        parts.append(f"<h4>Parameters</h4><table>{''.join(rows)}</table>")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append(f"<h4>Body</h4><p>{_type(body)}</p>")
        parts += [_example(path, method, example) for example in _examples(body, document)]
    rows = [
        _row(status, _contents(response), response.get("description", ""))
        for status, response in sorted(operation["responses"].items())
    ]
    return "".join([*parts, f"<h4>Answers</h4><table>{''.join(rows)}</table></details>"])


def _example(path: str, method: str, example: Json) -> str:
    data = json.dumps(example, ensure_ascii=False).replace("'", "'\\''")
    command = f"curl -X {method.upper()} http://localhost:52415{path} -H 'Content-Type: application/json' -d '{data}'"
    return f"<pre>{escape(command)}</pre>"


def _examples(schema: Json, document: Json) -> list[Json]:
    name = schema.get("$ref", "").removeprefix(_REFERENCE)
    found: list[Json] = document["components"]["schemas"].get(name, {}).get("examples", [])
    return found


def _contents(response: Json) -> str:
    found = [
        f"{_type(content['schema'])} <small>{escape(kind)}</small>" if content.get("schema") else escape(kind)
        for kind, content in response.get("content", {}).items()
    ]
    return "<br>".join(found) or "nothing"


def _shape(name: str, schema: Json) -> str:
    required = set(schema.get("required", []))
    rows = [
        _row(
            key,
            _type(field) + ("" if key in required else " <small>optional</small>"),
            field.get("description", ""),
        )
        for key, field in schema.get("properties", {}).items()
    ]
    description = escape(schema.get("description", "")).replace("\n\n", "<br>")
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{description}</p><table>{''.join(rows)}</table></details>"
    )


def _row(name: str, kind: str, description: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(description)}</td></tr>"


def _type(schema: Json) -> str:
    """Return a schema's type in words, with links to the shapes it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    if "contentSchema" in schema:
        return f"server-sent events of {_type(schema['contentSchema'])}"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(one) for one in schema[key])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(one))}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return escape(" ".join([str(schema.get("type", "anything")), *limits]))

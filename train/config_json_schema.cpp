#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "train/config_schema.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

Json number_json(double value, SettingKind kind) {
  const bool whole = kind == SettingKind::Integer || kind == SettingKind::IntegerArray;
  return whole ? Json(static_cast<std::int64_t>(value)) : Json(value);
}

void add_range(Json& json, const SettingKey& key) {
  if (key.minimum) {
    json[key.minimum->open ? "exclusiveMinimum" : "minimum"] = number_json(key.minimum->value, key.kind);
  }
  if (key.maximum) {
    json[key.maximum->open ? "exclusiveMaximum" : "maximum"] = number_json(key.maximum->value, key.kind);
  }
}

Json element_json(const SettingKey& key) {
  Json json;
  switch (key.kind) {
    case SettingKind::Boolean:
      json["type"] = "boolean";
      break;
    case SettingKind::Integer:
    case SettingKind::IntegerArray:
      json["type"] = "integer";
      add_range(json, key);
      break;
    case SettingKind::Number:
    case SettingKind::NumberArray:
      json["type"] = "number";
      add_range(json, key);
      break;
    case SettingKind::String:
    case SettingKind::StringArray:
      json["type"] = "string";
      json["minLength"] = 1;
      if (!key.choices.empty()) json["enum"] = key.choices;
      break;
  }
  return json;
}

Json key_json(const SettingKey& key) {
  Json json = {{"description", key.unit.empty() ? key.doc : key.doc + " [" + key.unit + "]"}};
  const bool array = key.kind == SettingKind::IntegerArray || key.kind == SettingKind::NumberArray ||
                     key.kind == SettingKind::StringArray;
  if (array) {
    json["type"] = "array";
    json["items"] = element_json(key);
  } else {
    json.update(element_json(key));
  }
  const auto write = [&](const auto& value) {
    if constexpr (!std::is_same_v<std::decay_t<decltype(value)>, std::monostate>) json["default"] = value;
  };
  std::visit(write, key.fallback);
  return json;
}

/// The object schema that a dotted table path leads to, made where it is missing.
Json& table_json(Json& root, const std::string& path) {
  Json* json = &root;
  for (std::size_t begin = 0; begin < path.size();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    json = &(*json)["properties"][path.substr(begin, end - begin)];
    (*json)["type"] = "object";
    begin = end + 1;
  }
  return *json;
}

void close_tables(Json& json) {
  if (!json.is_object() || !json.contains("properties")) return;
  json["additionalProperties"] = false;
  for (auto& [name, property] : json["properties"].items()) close_tables(property);
}

/// What choosing an owner adds: its keys exactly, and the keys of the other owners of the table forbidden.
Json owner_json(const Schema& schema, const SettingGroup& chosen) {
  Json then = Json::object();
  std::set<std::string> own;
  for (const SettingKey& key : chosen.keys) {
    table_json(then, key.table())["properties"][key.name()] = key_json(key);
    own.insert(key.path);
  }
  for (const SettingGroup& group : schema.groups()) {
    if (group.table != chosen.table || group.owner.empty() || group.owner == chosen.owner) continue;
    for (const SettingKey& key : group.keys) {
      const std::vector<Schema::Declaration> declarations = schema.declarations(key.path);
      const bool always = declarations.front().group == nullptr || declarations.front().group->owner.empty();
      if (!always && !own.contains(key.path)) table_json(then, key.table())["properties"][key.name()] = false;
    }
  }
  return then;
}

}  // namespace

std::string json_schema(const Schema& schema) {
  Json root = {{"$schema", "http://json-schema.org/draft-07/schema#"},
               {"title", "graft configuration"},
               {"type", "object"},
               {"properties", Json::object()}};
  for (const Schema::Declaration& declaration : schema.all()) {
    const SettingKey& key = *declaration.key;
    Json& properties = table_json(root, key.table())["properties"];
    // Owners may declare one key with different ranges; here it only has to exist, "allOf" below is exact.
    if (!properties.contains(key.name())) {
      const bool shared = schema.declarations(key.path).size() > 1;
      properties[key.name()] = shared ? Json{{"description", key.doc}} : key_json(key);
    }
    if (key.must_be_given && declaration.group == nullptr) {
      table_json(root, key.table())["required"].push_back(key.name());
      root["required"].push_back(key.table());
    }
  }
  close_tables(root);
  root["properties"]["model"]["oneOf"] = {{{"required", {"preset"}}}, {{"required", {"pattern"}}}};
  root["required"].push_back("model");

  for (const SettingGroup& group : schema.groups()) {
    if (group.owner.empty() || selector_of(group.table).empty()) continue;
    const std::string selector(selector_of(group.table));
    const std::size_t dot = selector.rfind('.');
    Json condition = Json::object();
    Json& table = table_json(condition, selector.substr(0, dot));
    table["properties"][selector.substr(dot + 1)] = {{"const", group.owner}};
    table["required"] = {selector.substr(dot + 1)};
    condition["required"] = {selector.substr(0, dot)};
    Json then = owner_json(schema, group);
    if (!then.empty()) root["allOf"].push_back({{"if", condition}, {"then", then}});
  }
  return root.dump(2);
}

}  // namespace graft

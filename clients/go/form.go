package limbeck

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Field is one field of a form.
type Field struct {
	Name, Title, Description string
	// Types are number, integer, string, boolean, array, object, or several of them; null: it may be left empty.
	Types []string
	// Required: there is no default.
	Required bool
	// Default is JSON; nil for none.
	Default json.RawMessage
	// Choices are the only values that are allowed, as JSON; nil for any.
	Choices []json.RawMessage
	// AtLeast and AtMost are allowed themselves, Above and Below are not; nil for no such limit.
	AtLeast, Above, AtMost, Below *float64
}

// Form are the fields of a config in their order, to draw a form from: schema is a Plugin's ConfigSchema. RequestInvalid
// for what is no JSON Schema of an object.
func Form(schema string) ([]Field, error) {
	var root node
	if err := json.Unmarshal([]byte(schema), &root); err != nil {
		return nil, newError(RequestInvalid, Problem{Message: fmt.Sprintf("is no JSON Schema: %s", err), Field: "schema"})
	}
	names, properties, err := ordered(root["properties"])
	if err != nil {
		return nil, newError(RequestInvalid, Problem{Message: fmt.Sprintf("is no JSON Schema of an object: %s", err), Field: "schema"})
	}
	var required []string
	readJSON(root["required"], &required)
	var fields []Field
	for _, name := range names {
		field := root.field(properties[name])
		field.Name = name
		if field.Title == "" {
			field.Title = name
		}
		for _, one := range required {
			field.Required = field.Required || one == name
		}
		fields = append(fields, field)
	}
	return fields, nil
}

// node is a schema.
type node map[string]json.RawMessage

func (root node) field(property node) (f Field) {
	property = root.whole(property, 0)
	kinds := []node{property}
	for _, key := range []string{"anyOf", "oneOf", "allOf"} {
		var alternatives []node
		readJSON(property[key], &alternatives)
		for _, one := range alternatives {
			kinds = append(kinds, root.whole(one, 0))
		}
	}
	f.Default = property["default"]
	for _, kind := range kinds {
		if f.Title == "" {
			readJSON(kind["title"], &f.Title)
		}
		if f.Description == "" {
			readJSON(kind["description"], &f.Description)
		}
		for key, bound := range map[string]**float64{
			"minimum": &f.AtLeast, "exclusiveMinimum": &f.Above, "maximum": &f.AtMost, "exclusiveMaximum": &f.Below,
		} {
			if *bound == nil {
				readJSON(kind[key], bound)
			}
		}
		f.Types = append(f.Types, types(kind)...)
		var choices []json.RawMessage
		readJSON(kind["enum"], &choices)
		f.Choices = append(f.Choices, choices...)
		if only, ok := kind["const"]; ok {
			f.Choices = append(f.Choices, only)
		}
	}
	return f
}

func types(kind node) []string {
	var one string
	var several []string
	if readJSON(kind["type"], &one) {
		return []string{one}
	}
	readJSON(kind["type"], &several)
	return several
}

// whole is a schema with what it refers to put in; what it says itself counts first.
func (root node) whole(schema node, depth int) node {
	var reference string
	if !readJSON(schema["$ref"], &reference) || depth > 16 {
		return schema
	}
	target := root
	for _, part := range strings.Split(strings.TrimPrefix(reference, "#/"), "/") {
		var next node
		readJSON(target[strings.NewReplacer("~1", "/", "~0", "~").Replace(part)], &next)
		target = next
	}
	found := node{}
	for key, value := range root.whole(target, depth+1) {
		found[key] = value
	}
	for key, value := range schema {
		if key != "$ref" {
			found[key] = value
		}
	}
	return found
}

// ordered are the members of a JSON object, and their names in order.
func ordered(raw json.RawMessage) (names []string, members map[string]node, err error) {
	if raw == nil {
		return nil, nil, nil
	}
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	_, _ = decoder.Token() // the brace
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, nil, err
		}
		names = append(names, name.(string))
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, nil, err
		}
	}
	return names, members, nil
}

// readJSON reads a value where it is there and of the type.
func readJSON[T any](raw json.RawMessage, into *T) bool {
	var found T
	if raw == nil || json.Unmarshal(raw, &found) != nil {
		return false
	}
	*into = found
	return true
}

"""The API's shapes: what people and programs outside send and get. Inside, values are msgspec structs."""

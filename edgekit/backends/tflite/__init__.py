"""TensorFlow Lite: our own lowering of an ONNX graph to a .tflite flatbuffer, float and INT8."""

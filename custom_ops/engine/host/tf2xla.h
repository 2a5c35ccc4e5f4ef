// tf2xla's XlaOpKernel without the compiler behind it. A kernel is handed an XlaOpKernelContext and calls its
// functions; of the other classes named in that header it needs the names only, but their headers bring in XLA's
// compiler, its evaluator and its client, which took 30 s of the 47 s that xla_kernel.cc compiled for. Their include
// guards are defined here, so that they are left out, and the names declared.

#ifndef TFTOOLKIT_HOST_TF2XLA_H_
#define TFTOOLKIT_HOST_TF2XLA_H_

#define TENSORFLOW_COMPILER_TF2XLA_XLA_COMPILER_H_
#define TENSORFLOW_COMPILER_TF2XLA_XLA_CONTEXT_H_
#define TENSORFLOW_COMPILER_TF2XLA_XLA_EXPRESSION_H_
#define TENSORFLOW_COMPILER_TF2XLA_XLA_RESOURCE_H_
#define XLA_HLO_BUILDER_VALUE_INFERENCE_H_

namespace tensorflow {
class XlaCompiler;
class XlaContext;
class XlaExpression;
class XlaResource;
}  // namespace tensorflow

namespace xla {
class XlaBuilder;
enum ValueInferenceMode { kValue, kUpperBound, kLowerBound };
class ValueInference {};  // the last member of a context, which the host neither makes nor copies
}  // namespace xla

#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"

#endif  // TFTOOLKIT_HOST_TF2XLA_H_
